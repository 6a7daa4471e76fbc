//! This process as a client of Ceph clusters.
//!
//! One connection for every way in (monitors, user, key), however many volumes go through it: librbd's threads and
//! memory are paid for once. Under which addresses the clusters know us is published before anything is done there, so
//! that whoever has to fence us knows whom to name.

use std::{sync::Arc, time::Instant};

use drover_rbd::{Cluster, ConnectConfig, Library, Pool, Secret, Source};
use drover_wire::vm::v1::StorageClient;
use tracing::info;

use crate::{
    jail,
    order::RbdAccess,
    refused::{Refused, chain},
    status::Status,
};

/// Connections, opened when they are first needed. They last as long as the process.
#[derive(Debug)]
pub(crate) struct Clusters {
    status: Arc<Status>,
    vcpus: u32,
    open: Vec<(Source, Cluster)>,
}

impl Clusters {
    /// None yet. What we are called is published in `status`.
    pub(crate) fn new(status: Arc<Status>) -> Self {
        Self { status, vcpus: 1, open: Vec::new() }
    }

    /// Makes the connections that are opened from now on fit a VM of so many vCPUs.
    pub(crate) fn fit(&mut self, vcpus: u32) {
        self.vcpus = vcpus;
    }

    /// The pool that this is the way to. Waits for the cluster's monitors.
    pub(crate) fn pool(&mut self, access: &RbdAccess) -> Result<Pool, Refused> {
        let cluster = self.cluster(access)?;
        Pool::open(cluster, &access.ceph_pool, &access.namespace)
            .map_err(|error| refused(format!("cannot open the Ceph pool '{}'", access.ceph_pool), &error))
    }

    fn cluster(&mut self, access: &RbdAccess) -> Result<&Cluster, Refused> {
        let source = Source::Monitors {
            hosts: access.mon_hosts.clone(),
            user: access.user.clone(),
            key: Secret::new(access.key.reveal()),
        };
        let known = self.open.iter().position(|(known, _)| *known == source);
        let place = match known {
            Some(place) => place,
            None => {
                let cluster = self.connect(source.clone())?;
                self.open.push((source, cluster));
                self.open.len() - 1
            }
        };
        Ok(&self.open[place].1)
    }

    fn connect(&self, source: Source) -> Result<Cluster, Refused> {
        if !jail::reaches_clusters() {
            let text = "this VM's process was started without a disk in Ceph, and its jail has no way to a cluster: stop the \
                        VM, attach the volume, and start it again";
            return Err(Refused::Precondition(text.to_owned()));
        }
        let began = Instant::now();
        let library = Library::load().map_err(|error| Refused::Precondition(chain(&error)))?;
        let loaded = began.elapsed();
        let cluster = Cluster::connect(library, &ConnectConfig::new(source).for_processors(self.vcpus))
            .map_err(|error| refused("cannot connect to the Ceph cluster".to_owned(), &error))?;
        let unnamed = |error| refused("cannot tell what the Ceph cluster calls us".to_owned(), &error);
        let client = StorageClient {
            cluster: cluster.fsid().map_err(unnamed)?,
            addresses: cluster.addresses().map_err(unnamed)?.iter().map(ToString::to_string).collect(),
        };
        info!(
            took_us = began.elapsed().as_micros(),
            loading_us = loaded.as_micros(),
            "connected to a Ceph cluster"
        );
        self.status.update(|info| info.storage_clients.push(client));
        Ok(cluster)
    }
}

fn refused(tried: String, error: &drover_rbd::Error) -> Refused {
    Refused::Precondition(format!("{tried}: {}", chain(error)))
}
