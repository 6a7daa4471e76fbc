//! Landlock: which files the process may open from now on, and that it makes no connection.

use std::path::PathBuf;

use crate::JailError;
use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, PathBeneath, PathFd, Ruleset,
    RulesetAttr as _, RulesetCreated, RulesetCreatedAttr as _, RulesetStatus, Scope,
};

/// The newest rights that are named here; an older kernel enforces those it knows.
const RIGHTS: ABI = ABI::V6;

/// What may be done below a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grant {
    /// Files may be read, directories listed.
    Read,
    /// Plain files may be read, written, made and removed, sockets made; nothing else: no links, devices or directories.
    Keep,
}

/// Rules that are ready to be put into force: what they name has been looked up.
#[derive(Debug)]
pub(crate) struct Rules(RulesetCreated);

/// Reads the rules. `network`: the process connects to other hosts by itself.
pub(crate) fn prepare(grants: &[(PathBuf, Grant)], network: bool) -> Result<Rules, JailError> {
    let failed = |error: &dyn std::error::Error| JailError::Landlock(error.to_string());
    let mut rules = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(RIGHTS))
        .and_then(|rules| rules.scope(Scope::from_all(RIGHTS)))
        .map_err(|error| failed(&error))?;
    let denied = if network { AccessNet::BindTcp.into() } else { AccessNet::from_all(RIGHTS) };
    rules = rules.handle_access(denied).map_err(|error| failed(&error))?;
    let mut created = rules.create().map_err(|error| failed(&error))?;
    for (path, grant) in grants {
        // What is not there cannot be opened either.
        let Ok(beneath) = PathFd::new(path) else { continue };
        let rights = match grant {
            Grant::Read => AccessFs::ReadFile | AccessFs::ReadDir,
            Grant::Keep => {
                AccessFs::ReadFile
                    | AccessFs::ReadDir
                    | AccessFs::WriteFile
                    | AccessFs::Truncate
                    | AccessFs::MakeReg
                    | AccessFs::MakeSock
                    | AccessFs::RemoveFile
            }
        };
        created = created.add_rule(PathBeneath::new(beneath, rights)).map_err(|error| failed(&error))?;
    }
    Ok(Rules(created))
}

impl Rules {
    /// From now on. Whether the kernel enforces all of it, some of it, or nothing.
    pub(crate) fn enforce(self) -> Result<Enforced, JailError> {
        let status = self.0.restrict_self().map_err(|error| JailError::Landlock(error.to_string()))?;
        Ok(match status.ruleset {
            RulesetStatus::FullyEnforced => Enforced::Whole,
            RulesetStatus::PartiallyEnforced => Enforced::Partly,
            RulesetStatus::NotEnforced => Enforced::Not,
        })
    }
}

/// How much of a layer is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Enforced {
    /// All of it.
    Whole,
    /// What this kernel knows.
    Partly,
    /// Nothing.
    Not,
}
