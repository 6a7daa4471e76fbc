//! The Ceph clusters of the configuration, as a user who may do what nodes may not: make keys, and blocklist clients.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use drover_cluster_state::{Name, PoolAccess, RbdCredentials, RbdPool, Secret};
use drover_rbd::{ClientAddress, Cluster, ConnectConfig, Error, Library, LoadError, Pool, Source, Timeouts};
use serde::Deserialize;
use serde_json::json;

use crate::config::CephConfig;

/// A monitor that has not answered a command after this will not: one paxos round takes a second at most.
const MONITOR_TIMEOUT: Duration = Duration::from_secs(30);
/// One request to an OSD. Unlike a VM's disk, work on storage is repeated, and must not hold a thread for ever.
const OSD_TIMEOUT: Duration = Duration::from_secs(60);

/// Why a Ceph cluster cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CephError {
    /// Not in the configuration.
    #[error("Ceph cluster '{0}' is not configured at the control plane; start it with --ceph {0}=conf:PATH")]
    NotConfigured(Name),
    /// No librbd here.
    #[error("the control plane cannot use Ceph")]
    Library(#[from] LoadError),
    /// The cluster refused, or is not there.
    #[error("Ceph cluster '{cluster}'")]
    Ceph {
        /// Which.
        cluster: Name,
        /// What it said.
        #[source]
        source: Error,
    },
    /// There is no such Ceph pool.
    #[error("ceph_pool: Ceph cluster '{cluster}' has no pool '{pool}'; it has: {known}")]
    NoPool {
        /// The cluster.
        cluster: Name,
        /// What was looked for.
        pool: String,
        /// What there is.
        known: String,
    },
    /// Ceph's answer makes no sense.
    #[error("the answer of Ceph cluster '{cluster}' to '{command}' cannot be understood: {problem}")]
    Answer {
        /// The cluster.
        cluster: Name,
        /// The command.
        command: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A node with this key could take the storage of others away.
    #[error(
        "the key that was made for the pool can blocklist clients, which nodes must not; nothing was stored"
    )]
    TooPowerful,
}

/// One cluster.
#[derive(Debug)]
struct Known {
    config: CephConfig,
    connected: Mutex<Option<Cluster>>,
}

/// Every cluster of the configuration. Clones share their connections.
#[derive(Clone, Debug, Default)]
pub(crate) struct CephClusters {
    clusters: Arc<BTreeMap<Name, Known>>,
}

impl CephClusters {
    pub(crate) fn new(configs: BTreeMap<Name, CephConfig>) -> Self {
        let known = |config| Known { config, connected: Mutex::new(None) };
        let clusters = configs.into_iter().map(|(name, config)| (name, known(config)));
        Self { clusters: Arc::new(clusters.collect()) }
    }

    /// Their names.
    pub(crate) fn names(&self) -> BTreeSet<Name> {
        self.clusters.keys().cloned().collect()
    }

    /// The connection to a cluster, made on first use and kept. Blocks, some seconds where nobody answers.
    pub(crate) fn connect(&self, name: &Name) -> Result<Cluster, CephError> {
        let known = self.clusters.get(name).ok_or_else(|| CephError::NotConfigured(name.clone()))?;
        let mut connected = known.connected.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(cluster) = &*connected {
            return Ok(cluster.clone());
        }
        let CephConfig { conf, user } = known.config.clone();
        let mut config = ConnectConfig::new(Source::ConfFile { path: conf, user });
        config.timeouts = timeouts();
        let cluster = Cluster::connect(Library::load()?, &config).map_err(|source| failed(name, source))?;
        *connected = Some(cluster.clone());
        Ok(cluster)
    }

    /// The pool, with the rights of the control plane. Blocks.
    pub(crate) fn open(&self, rbd: &RbdPool) -> Result<Pool, CephError> {
        let cluster = self.connect(&rbd.cluster)?;
        open(&cluster, rbd, &rbd.namespace)
    }

    /// Makes the user of a pool's nodes and proves that it can use the pool's images and nothing more. Idempotent.
    /// Blocks.
    pub(crate) fn make_user(&self, rbd: &RbdPool) -> Result<RbdCredentials, CephError> {
        let name = &rbd.cluster;
        let cluster = self.connect(name)?;
        let pool = open(&cluster, rbd, "")?;
        pool.initialise().map_err(|source| failed(name, source))?;
        if !rbd.namespace.is_empty() {
            match pool.create_namespace(&rbd.namespace) {
                Err(source) if !source.is_already_there() => return Err(failed(name, source)),
                _ => {}
            }
        }
        let key = make_key(&cluster, rbd)?;
        let mon_hosts = monitors(&cluster, name)?;
        let access = PoolAccess {
            mon_hosts: mon_hosts.clone(),
            ceph_pool: rbd.ceph_pool.clone(),
            namespace: rbd.namespace.clone(),
            user: rbd.user.clone(),
            key: key.clone(),
            stall: None,
        };
        prove(&cluster, name, &access)?;
        Ok(RbdCredentials { mon_hosts, key })
    }

    /// Removes the user of a pool's nodes. Idempotent. Blocks.
    pub(crate) fn remove_user(&self, rbd: &RbdPool) -> Result<(), CephError> {
        let cluster = self.connect(&rbd.cluster)?;
        let command = json!({"prefix": "auth del", "entity": format!("client.{}", rbd.user)});
        match cluster.command(&command) {
            Err(source) if !source.is_not_found() => Err(failed(&rbd.cluster, source)),
            _ => Ok(()),
        }
    }
}

fn timeouts() -> Timeouts {
    Timeouts { monitor: Some(MONITOR_TIMEOUT), osd: Some(OSD_TIMEOUT), ..Timeouts::default() }
}

fn failed(cluster: &Name, source: Error) -> CephError {
    CephError::Ceph { cluster: cluster.clone(), source }
}

fn open(cluster: &Cluster, rbd: &RbdPool, namespace: &str) -> Result<Pool, CephError> {
    Pool::open(cluster, &rbd.ceph_pool, namespace).map_err(|source| {
        if !source.is_not_found() {
            return failed(&rbd.cluster, source);
        }
        let known = cluster.pools().unwrap_or_default().join(", ");
        CephError::NoPool { cluster: rbd.cluster.clone(), pool: rbd.ceph_pool.clone(), known }
    })
}

fn answer<T: for<'a> Deserialize<'a>>(
    cluster: &Cluster,
    name: &Name,
    command: &'static str,
    arguments: serde_json::Value,
) -> Result<T, CephError> {
    let mut whole = json!({"prefix": command, "format": "json"});
    if let (Some(whole), serde_json::Value::Object(arguments)) = (whole.as_object_mut(), arguments) {
        whole.extend(arguments);
    }
    let text = cluster.command(&whole).map_err(|source| failed(name, source))?;
    // The text is not repeated: it may hold a key.
    serde_json::from_slice(&text).map_err(|error| CephError::Answer {
        cluster: name.clone(),
        command,
        problem: format!("line {}, column {}", error.line(), error.column()),
    })
}

fn make_key(cluster: &Cluster, rbd: &RbdPool) -> Result<Secret, CephError> {
    #[derive(Deserialize)]
    struct Entity {
        key: String,
    }
    const COMMAND: &str = "auth get-or-create";
    // Names of pools and namespaces were checked when the pool was admitted: they end neither word nor capability.
    let osd = match rbd.namespace.as_str() {
        "" => format!("profile rbd pool={}", rbd.ceph_pool),
        namespace => format!("profile rbd pool={} namespace={namespace}", rbd.ceph_pool),
    };
    // Not the monitors' own "profile rbd": that one lets every client blocklist every other.
    let arguments = json!({"entity": format!("client.{}", rbd.user), "caps": ["mon", "allow r", "osd", osd]});
    let entities: Vec<Entity> = answer(cluster, &rbd.cluster, COMMAND, arguments)?;
    let entity = entities.into_iter().next().ok_or_else(|| CephError::Answer {
        cluster: rbd.cluster.clone(),
        command: COMMAND,
        problem: "it is empty".to_owned(),
    })?;
    Ok(Secret::new(entity.key))
}

/// The cluster's monitors, as `mon_host`.
fn monitors(cluster: &Cluster, name: &Name) -> Result<String, CephError> {
    #[derive(Deserialize)]
    struct Dump {
        mons: Vec<Monitor>,
    }
    #[derive(Deserialize)]
    struct Monitor {
        public_addrs: Addresses,
    }
    #[derive(Deserialize)]
    struct Addresses {
        addrvec: Vec<Address>,
    }
    #[derive(Deserialize)]
    struct Address {
        r#type: String,
        addr: String,
    }
    let dump: Dump = answer(cluster, name, "mon dump", json!({}))?;
    let monitor = |monitor: &Monitor| {
        let addresses = monitor.public_addrs.addrvec.iter();
        let texts: Vec<String> = addresses.map(|one| format!("{}:{}/0", one.r#type, one.addr)).collect();
        format!("[{}]", texts.join(","))
    };
    Ok(dump.mons.iter().map(monitor).collect::<Vec<_>>().join(","))
}

/// Uses the pool as a node would, and tries what a node must not be able to do.
fn prove(admin: &Cluster, name: &Name, access: &PoolAccess) -> Result<(), CephError> {
    let source = Source::Monitors {
        hosts: access.mon_hosts.clone(),
        user: access.user.clone(),
        key: drover_rbd::Secret::new(access.key.expose()),
    };
    let mut config = ConnectConfig::new(source);
    config.timeouts = timeouts();
    let node = Cluster::connect(Library::load()?, &config).map_err(|source| failed(name, source))?;
    let pool = Pool::open(&node, &access.ceph_pool, &access.namespace);
    pool.and_then(|pool| pool.images()).map_err(|source| failed(name, source))?;
    // An address of documentation (RFC 5737): it is nobody's.
    let nobody = ClientAddress::new(SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), 0), 1);
    match node.blocklist_add(nobody, Duration::from_secs(1)) {
        Err(source) if source.is_denied() => Ok(()),
        Err(source) => Err(failed(name, source)),
        Ok(()) => {
            // It ends by itself as well.
            let _removed = admin.blocklist_remove(nobody);
            Err(CephError::TooPowerful)
        }
    }
}
