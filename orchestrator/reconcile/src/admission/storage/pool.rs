//! Pools that clients make.

use std::collections::BTreeSet;

use drover_cluster_state::{
    ClusterState, Name, Pool, PoolState, RbdPool, Record, StallPolicy, StorageWork, Subject, Txn, WallTime,
};

use super::{AdmissionError, Admitted, RequestIdentity, begin, repeated_work, require_free};
use crate::admission::vm::{check_stall, parse_name};

/// Longest name of a Ceph pool or namespace, bytes.
const CEPH_NAME_BYTES_MAX: usize = 128;

/// A request for a new pool, as the client sent it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CreatePool {
    /// Its name.
    pub name: String,
    /// The Ceph cluster, by its name in the configuration. Empty: the only one there is.
    pub cluster: String,
    /// Ceph's name of the pool.
    pub ceph_pool: String,
    /// Its namespace. Empty: the default one.
    pub namespace: String,
    /// For VMs that do not say themselves what becomes of them when the storage does not answer.
    pub stall: Option<StallPolicy>,
}

/// Admits a new pool.
pub fn create_pool(
    state: &ClusterState,
    (configured, clusters): (&BTreeSet<Name>, &BTreeSet<Name>),
    request: &CreatePool,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let work = StorageWork::PoolCreate;
    if let Some(earlier) = repeated_work(state, identity, work.name(), &request.name)? {
        return Ok(earlier);
    }
    let name = parse_name("name", &request.name)?;
    if configured.contains(&name) || state.pools.contains_key(&name) {
        let holder = if configured.contains(&name) { "of the configuration" } else { "with this name" };
        return Err(AdmissionError::NameTaken {
            field: "name",
            kind: "pool",
            name: name.to_string(),
            holder: holder.to_owned(),
        });
    }
    check_stall("stall.deadline_ms", request.stall)?;
    let cluster = find_cluster(clusters, &request.cluster)?;
    let ceph_pool = ceph_name("ceph_pool", &request.ceph_pool)?;
    let namespace = match request.namespace.as_str() {
        "" => String::new(),
        namespace => ceph_name("namespace", namespace)?,
    };
    let same = state
        .pools
        .values()
        .find(|p| p.rbd.cluster == cluster && p.rbd.ceph_pool == ceph_pool && p.rbd.namespace == namespace);
    if let Some(same) = same {
        // Two pools in one place would delete each other's disks by accident.
        let problem = format!("pool '{}' is there already", same.name);
        return Err(AdmissionError::wrong_state("ceph_pool", problem, "a Ceph pool or namespace of its own"));
    }
    let mut txn = Txn::new();
    let operation = begin(&mut txn, identity, work, (Subject::Pool(name.clone()), name.clone()), now);
    // Unique, also among clusters of Drover that share one of Ceph.
    let user = format!("drover.{name}.{:08x}", operation.as_u128() >> 96);
    let rbd = RbdPool { cluster, ceph_pool, namespace, user, credentials: None };
    let (state, operation) = (PoolState::Creating, Some(operation));
    txn.create(Record::Pool(Pool { name, rbd, state, operation, created_at: now, stall: request.stall }));
    Ok(Admitted { operation: identity.operation(), txn: Some(txn) })
}

/// Admits the removal of a pool in which nothing is. What is stored in Ceph besides Drover's disks stays.
pub fn delete_pool(
    state: &ClusterState,
    configured: &BTreeSet<Name>,
    pool: &str,
    identity: &RequestIdentity,
    now: WallTime,
) -> Result<Admitted, AdmissionError> {
    let work = StorageWork::PoolDelete;
    if let Some(earlier) = repeated_work(state, identity, work.name(), pool)? {
        return Ok(earlier);
    }
    let found = Name::new(pool).ok();
    if found.as_ref().is_some_and(|name| configured.contains(name)) {
        let problem = format!("pool '{pool}' is part of the control plane's configuration");
        return Err(AdmissionError::wrong_state("pool", problem, "a pool that was made with `pool create`"));
    }
    let found = found.and_then(|name| state.pools.get(&name)).ok_or_else(|| {
        AdmissionError::not_found("pool", "pool", pool, state.pools.keys().map(Name::as_str))
    })?;
    require_free(state, "pool", &format!("pool '{pool}'"), found.operation)?;
    let users: Vec<String> = (state.volumes.values().filter(|volume| volume.pool == found.name))
        .map(|volume| format!("volume '{}'", volume.name))
        .chain(
            (state.disk_images.values().filter(|image| image.pool == found.name))
                .map(|image| format!("disk image '{}'", image.name)),
        )
        .collect();
    if let Some(first) = users.first() {
        let users = match users.len() {
            1 => first.clone(),
            n => format!("{first} and {} more", n - 1),
        };
        return Err(AdmissionError::InUse {
            field: "pool",
            kind: "pool",
            name: found.name.to_string(),
            users,
        });
    }
    let mut txn = Txn::new();
    let subject = (Subject::Pool(found.name.clone()), found.name.clone());
    let operation = begin(&mut txn, identity, work, subject, now);
    let deleting = Pool { state: PoolState::Deleting, operation: Some(operation), ..found.value.clone() };
    txn.update(found.revision, Record::Pool(deleting));
    Ok(Admitted { operation, txn: Some(txn) })
}

/// The pools that something can be made in: those of the configuration, and those that are ready.
pub fn usable_pools(state: &ClusterState, configured: &BTreeSet<Name>) -> BTreeSet<Name> {
    let ready = state.pools.values().filter(|pool| pool.state == PoolState::Ready);
    configured.iter().cloned().chain(ready.map(|pool| pool.name.clone())).collect()
}

fn find_cluster(clusters: &BTreeSet<Name>, text: &str) -> Result<Name, AdmissionError> {
    if clusters.is_empty() {
        return Err(AdmissionError::wrong_state(
            "cluster",
            "this control plane knows no Ceph cluster",
            "one that was given to it with --ceph NAME=conf:PATH",
        ));
    }
    match (text, clusters.len()) {
        ("", 1) => Ok(clusters.first().expect("there is one").clone()),
        ("", _) => {
            let names: Vec<&str> = clusters.iter().map(Name::as_str).collect();
            Err(AdmissionError::invalid("cluster", "none is named", format!("one of: {}", names.join(", "))))
        }
        (text, _) => {
            let found = Name::new(text).ok().filter(|name| clusters.contains(name));
            found.ok_or_else(|| {
                AdmissionError::not_found("cluster", "Ceph cluster", text, clusters.iter().map(Name::as_str))
            })
        }
    }
}

/// The name becomes part of a capability: nothing in it may mean something there.
fn ceph_name(field: &'static str, text: &str) -> Result<String, AdmissionError> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let starts_well = text.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if starts_well && text.len() <= CEPH_NAME_BYTES_MAX && text.bytes().all(allowed) {
        return Ok(text.to_owned());
    }
    let shown: String = text.chars().take(80).collect();
    Err(AdmissionError::invalid(
        field,
        format!("'{shown}'"),
        format!(
            "1 to {CEPH_NAME_BYTES_MAX} letters, digits, '.', '_' or '-', starting with a letter or digit"
        ),
    ))
}
