//! Ceph clusters: `NAME=conf:PATH[,user=USER]`.

use std::{
    collections::BTreeMap,
    path::{self, PathBuf},
};

use drover_cluster_state::{Name, NameError};

/// What a cluster looks like, for errors.
const VALID: &str = "NAME=conf:PATH[,user=USER]";
/// Whom Ceph's own tools are unless told otherwise.
const USER: &str = "admin";

/// How to reach a Ceph cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CephConfig {
    /// Ceph's configuration file, which names the monitors and the keyring.
    pub conf: PathBuf,
    /// The user, without "client.".
    pub user: String,
}

/// A Ceph cluster that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum CephConfigError {
    /// Not of the right form.
    #[error("'{0}' is not a Ceph cluster; valid: {VALID}")]
    Form(String),
    /// Not a name.
    #[error("the cluster's name is not valid")]
    Name(#[from] NameError),
    /// Given twice.
    #[error("cluster '{0}' is given twice; valid: each name once")]
    Twice(Name),
}

/// Clusters of the command line go over those of the file with the same name.
pub(super) fn resolve(
    arguments: &[String],
    file: BTreeMap<String, String>,
) -> Result<BTreeMap<Name, CephConfig>, CephConfigError> {
    let mut clusters = BTreeMap::new();
    for (name, source) in file {
        clusters.insert(Name::new(&name)?, cluster(&source)?);
    }
    let mut given = BTreeMap::new();
    for argument in arguments {
        let (name, source) =
            argument.split_once('=').ok_or_else(|| CephConfigError::Form(argument.clone()))?;
        let name = Name::new(name)?;
        if given.insert(name.clone(), cluster(source)?).is_some() {
            return Err(CephConfigError::Twice(name));
        }
    }
    clusters.append(&mut given);
    Ok(clusters)
}

fn cluster(source: &str) -> Result<CephConfig, CephConfigError> {
    let wrong = || CephConfigError::Form(source.to_owned());
    let rest = source.strip_prefix("conf:").ok_or_else(wrong)?;
    let (conf, user) = match rest.split_once(',') {
        None => (rest, USER),
        Some((conf, user)) => (conf, user.strip_prefix("user=").ok_or_else(wrong)?),
    };
    if conf.is_empty() || user.is_empty() {
        return Err(wrong());
    }
    // Absolute from here on: nothing may depend on where the process was started.
    let conf = path::absolute(conf).map_err(|_| wrong())?;
    Ok(CephConfig { conf, user: user.to_owned() })
}
