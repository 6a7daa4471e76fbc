//! The store: accepts a transaction if its guards hold.

use drover_cluster_state::{Change, Expect, Key, Record, Revision, Txn, Write};
use drover_reconcile::Event;

use super::{World, network::Happening};

impl World {
    /// Stores a transaction and has the watch tell of it; or says how the guarded records are now.
    pub(crate) fn accept(&mut self, txn: Txn) -> Result<Revision, Vec<Change>> {
        let holds = |key: &Key, expect: &Expect| match expect {
            Expect::Absent => self.store.revision_of(key).is_none(),
            Expect::Revision(seen) => self.store.revision_of(key) == Some(*seen),
        };
        if !txn.guards.iter().all(|guard| holds(&guard.key, &guard.expect)) {
            return Err(txn.guards.iter().map(|guard| self.fresh(&guard.key)).collect());
        }
        let written: Vec<Key> = txn.writes.iter().map(Write::key).collect();
        assert!(written.iter().all(|key| txn.guards.iter().any(|g| g.key == *key)), "an unguarded write");
        self.revision += 1;
        let revision = Revision::new(self.revision);
        let changes: Vec<Change> = txn.writes.into_iter().map(|write| write.at(revision)).collect();
        for change in &changes {
            assert!(self.store.apply(change.clone()));
        }
        for event in txn.events {
            self.log(&event);
        }
        self.observe_store();
        let life = self.life;
        let delay = self.weather.watch_delay(&mut self.rng);
        // Watches keep the order of revisions: one that is late holds up those behind it.
        let at = self.watch_busy_until.max(self.now + delay);
        self.watch_busy_until = at;
        self.after(at - self.now, Happening::Watch { life, changes });
        Ok(revision)
    }

    fn fresh(&self, key: &Key) -> Change {
        let record = match key {
            Key::Policy(name) => {
                self.store.policies.get(name).map(|s| (s.revision, Record::Policy(s.value.clone())))
            }
            Key::Project(name) => {
                self.store.projects.get(name).map(|s| (s.revision, Record::Project(s.value.clone())))
            }
            Key::Settings => {
                self.store.settings.as_ref().map(|s| (s.revision, Record::Settings(s.value.clone())))
            }
            Key::Node(id) => self.store.nodes.get(id).map(|s| (s.revision, Record::Node(s.value.clone()))),
            Key::Vm(id) => self.store.vms.get(id).map(|s| (s.revision, Record::Vm(s.value.clone()))),
            Key::Volume(id) => {
                self.store.volumes.get(id).map(|s| (s.revision, Record::Volume(s.value.clone())))
            }
            Key::Image(name) => {
                self.store.images.get(name).map(|s| (s.revision, Record::Image(s.value.clone())))
            }
            Key::Pool(name) => {
                self.store.pools.get(name).map(|s| (s.revision, Record::Pool(s.value.clone())))
            }
            Key::DiskImage(name) => {
                self.store.disk_images.get(name).map(|s| (s.revision, Record::DiskImage(s.value.clone())))
            }
            Key::Operation(id) => {
                self.store.operations.get(id).map(|s| (s.revision, Record::Operation(s.value.clone())))
            }
            Key::Name(kind, name) => self
                .store
                .names
                .get(&(*kind, name.clone()))
                .map(|s| (s.revision, Record::Name(s.value.clone()))),
            Key::Blocklisting(vm, floor) => (self.store.blocklistings.get(&(*vm, *floor)))
                .map(|s| (s.revision, Record::Blocklisting(s.value.clone()))),
        };
        match record {
            Some((revision, record)) => Change::Put { revision, record },
            None => Change::Delete { revision: Revision::new(self.revision), key: key.clone() },
        }
    }

    pub(crate) fn log(&mut self, event: &drover_cluster_state::ClusterEvent) {
        self.events.push(format!("{:>8} {} {}: {}", self.now, event.kind, event.subject_name, event.message));
    }

    pub(crate) fn watch(&mut self, life: u64, changes: Vec<Change>) {
        if life == self.life {
            self.feed(Event::Stored(changes));
        }
    }
}
