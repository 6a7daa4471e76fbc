//! Pools: `NAME=dir:PATH`.

use std::{
    collections::BTreeMap,
    path::{self, PathBuf},
};

use drover_cluster_state::{Name, NameError};

/// What a pool looks like, for errors.
const VALID: &str = "NAME=dir:PATH";

/// A pool that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PoolError {
    /// There is none.
    #[error("no pool is configured; valid: {VALID}, at least one")]
    None,
    /// Not of the right form.
    #[error("'{0}' is not a pool; valid: {VALID}")]
    Form(String),
    /// Ceph.
    #[error(
        "'{0}' is an rbd pool, and those are made with `drover pool create` once --ceph names their cluster; valid: {VALID}"
    )]
    Rbd(String),
    /// Not a name.
    #[error("the pool's name is not valid")]
    Name(#[from] NameError),
    /// Given twice.
    #[error("pool '{0}' is given twice; valid: each name once")]
    Twice(Name),
}

/// Pools of the command line go over those of the file with the same name.
pub(super) fn resolve(
    arguments: &[String],
    file: BTreeMap<String, String>,
) -> Result<BTreeMap<Name, PathBuf>, PoolError> {
    let mut pools = BTreeMap::new();
    for (name, source) in file {
        pools.insert(Name::new(&name)?, directory(&format!("{name}={source}"), &source)?);
    }
    let mut given = BTreeMap::new();
    for argument in arguments {
        let (name, source) = argument.split_once('=').ok_or_else(|| PoolError::Form(argument.clone()))?;
        let name = Name::new(name)?;
        if given.insert(name.clone(), directory(argument, source)?).is_some() {
            return Err(PoolError::Twice(name));
        }
    }
    pools.append(&mut given);
    if pools.is_empty() { Err(PoolError::None) } else { Ok(pools) }
}

fn directory(whole: &str, source: &str) -> Result<PathBuf, PoolError> {
    match source.split_once(':') {
        // Absolute from here on: nothing may depend on where the process was started.
        Some(("dir", path)) if !path.is_empty() => {
            path::absolute(path).map_err(|_| PoolError::Form(whole.to_owned()))
        }
        Some(("rbd", _)) => Err(PoolError::Rbd(whole.to_owned())),
        _ => Err(PoolError::Form(whole.to_owned())),
    }
}
