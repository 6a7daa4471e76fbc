//! The loop.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use drover_cluster_state::{Change, ClusterEvent, ClusterState, Key, Txn};
use drover_ports::{Clock, Fence, NodeAgents, Store};
use drover_reconcile::{
    AgentCall, CallError, CommitId, CommitOutcome, Effect, Event, FenceRefusal, FenceRequest,
    HeartbeatAnswer, Planner, Stopwatch, Timers,
};
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::{JoinError, JoinSet},
    time::MissedTickBehavior,
};

use crate::{
    cluster::{Cluster, Request, View},
    commit::{Committer, describe},
    event_log::{EventLog, LoggedEvent},
    follow::{News, follow},
    load::{LoadError, Snapshot, load},
};

/// How often the planner is told that time has passed: a fifth of the shortest sensible heartbeat interval.
const TICK: Duration = Duration::from_millis(100);
/// Ticks between two checks of the invariants: they read the whole state.
const TICKS_PER_CHECK: u32 = 50;
/// VMs up to which the placement inventory is compared with a fresh one at each check; that takes a few milliseconds.
const VERIFIED_VMS_MAX: usize = 1000;
/// Requests that wait for the loop; more make their senders wait.
const REQUESTS_MAX: usize = 1024;
/// Batches of store changes that wait for the loop; more make the reader of the store wait.
const NEWS_MAX: usize = 64;
/// Events dropped from the store at a time.
const EVENTS_DROPPED: usize = 256;
/// A store that fails this many commits in a row will not get better in this process.
const STORE_FAILURES_MAX: u32 = 20;
/// Longest wait for a commit. A disk may stall for seconds; after this it is not known whether it was stored.
const COMMIT_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest wait for the storage to fence the volumes of one VM. Locks are taken or refused at once; only storage that
/// hangs takes longer, and then the planner asks again.
const FENCE_TIMEOUT: Duration = Duration::from_secs(10);

/// The world.
#[derive(Debug)]
pub struct Ports<S, A, F, C> {
    /// Where state is kept.
    pub store: S,
    /// Who runs VMs.
    pub agents: A,
    /// Who refuses old owners.
    pub fence: F,
    /// What time it is.
    pub clock: C,
}

/// Why the loop ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The store keeps failing. A new process opens it anew.
    #[error("the store failed {STORE_FAILURES_MAX} times in a row, last with: {0}")]
    StoreFailed(String),
    /// The task that follows the store has ended.
    #[error("the store's changes can no longer be followed")]
    StoreClosed,
}

/// What a task of the loop comes back with.
enum Done {
    /// An answer for the planner.
    Answer(Event),
    /// Something of the store: an error if it failed, and an answer if the planner waits for one.
    Stored(Result<(), String>, Option<Event>),
}

/// The loop, ready to run.
pub struct Driver<S, A, F, C> {
    committer: Arc<Committer<S>>,
    agents: Arc<A>,
    fence: Arc<F>,
    clock: C,
    planner: Planner,
    events: EventLog,
    requests: mpsc::Receiver<Request>,
    news: mpsc::Receiver<News>,
    changed: watch::Sender<u64>,
    tasks: JoinSet<Done>,
    store_failures: u32,
    ticks: u32,
    alarms: BTreeSet<String>,
}

impl<S: std::fmt::Debug, A, F, C> std::fmt::Debug for Driver<S, A, F, C> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Driver").field("committer", &self.committer).finish_non_exhaustive()
    }
}

impl<S: Store, A: NodeAgents, F: Fence, C: Clock> Driver<S, A, F, C> {
    /// Loads the store. `start` is a random number, for ids that no other process uses.
    ///
    /// # Errors
    /// [`LoadError`].
    pub async fn load(
        ports: Ports<S, A, F, C>,
        timers: Timers,
        stopwatch: Box<dyn Stopwatch>,
        start: u64,
    ) -> Result<(Self, Cluster<S>), LoadError> {
        let Ports { store, agents, fence, clock } = ports;
        let committer = Arc::new(Committer::new(Arc::new(store), start));
        let snapshot = load(&**committer.store()).await?;
        let mut state = ClusterState::new();
        for change in snapshot.records {
            state.apply(change);
        }
        let mut events = EventLog::default();
        for event in snapshot.events {
            events.push(event);
        }

        let (request, requests) = mpsc::channel(REQUESTS_MAX);
        let (tell, news) = mpsc::channel(NEWS_MAX);
        let (changed, changes) = watch::channel(0);
        let mut tasks = JoinSet::new();
        let following = follow(Arc::clone(committer.store()), snapshot.revision, tell);
        tasks.spawn(async move {
            following.await;
            Done::Stored(Ok(()), None)
        });
        let cluster = Cluster { requests: request, changed: changes, committer: Arc::clone(&committer) };
        let planner = Planner::new(timers, state, clock.now(), stopwatch);
        let (agents, fence) = (Arc::new(agents), Arc::new(fence));
        let driver = Self {
            committer,
            agents,
            fence,
            clock,
            planner,
            events,
            requests,
            news,
            changed,
            tasks,
            store_failures: 0,
            ticks: 0,
            alarms: BTreeSet::new(),
        };
        Ok((driver, cluster))
    }

    /// The cluster as the driver knows it. Before it runs: as it was stored.
    pub fn state(&self) -> &ClusterState {
        self.planner.state()
    }

    /// Runs until `stop` is ready. What is under way then is abandoned: whoever loads the store next takes it up.
    ///
    /// # Errors
    /// [`DriverError`], if the store fails for good.
    pub async fn run(mut self, stop: impl Future<Output = ()>) -> Result<(), DriverError> {
        let mut stop = std::pin::pin!(stop);
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = &mut stop => return Ok(()),
                // The handles keep this channel open, and `self` keeps none: all gone means nobody asks any more.
                Some(request) = self.requests.recv() => self.serve(request),
                news = self.news.recv() => match news {
                    Some(news) => self.learn(news),
                    None => return Err(DriverError::StoreClosed),
                },
                Some(done) = self.tasks.join_next() => self.finish(done)?,
                _ = ticks.tick() => self.tick(),
            }
        }
    }

    fn serve(&mut self, request: Request) {
        match request {
            Request::Look(look) => {
                let (state, book) = (self.planner.state(), self.planner.book());
                look(View { state, book, events: &self.events, now: self.clock.now() });
            }
            Request::Observe(changes, seen) => {
                self.step(Event::Stored(changes), None);
                // Whoever waited may have given up.
                let _unread = seen.send(());
            }
            Request::Heartbeat(heartbeat, answer) => self.step(Event::Heartbeat(heartbeat), Some(answer)),
        }
    }

    fn learn(&mut self, news: News) {
        let (records, events) = match news {
            News::Changes { records, events } => (records, events),
            News::Snapshot(snapshot) => {
                let missing = missing(self.planner.state(), &snapshot);
                (snapshot.records.into_iter().chain(missing).collect(), snapshot.events)
            }
        };
        for event in events {
            self.log(event);
        }
        let dropped = self.events.trim(EVENTS_DROPPED);
        if !dropped.is_empty() {
            let committer = Arc::clone(&self.committer);
            self.tasks.spawn(async move {
                let outcome = committer.drop_events(dropped).await;
                Done::Stored(outcome.map(drop).map_err(|error| describe(&error)), None)
            });
        }
        self.step(Event::Stored(records), None);
    }

    /// Takes an event into the log, and into the process's own.
    fn log(&mut self, logged: LoggedEvent) {
        let ClusterEvent { kind, subject_id, subject_name, message, .. } = logged.event.clone();
        if self.events.push(logged) {
            tracing::info!(%kind, subject = subject_name, id = subject_id, message, "event");
        }
    }

    fn finish(&mut self, done: Result<Done, JoinError>) -> Result<(), DriverError> {
        match done {
            Ok(Done::Answer(event)) => {
                self.step(event, None);
                Ok(())
            }
            Ok(Done::Stored(outcome, event)) => {
                self.count_failures(outcome)?;
                event.into_iter().for_each(|event| self.step(event, None));
                Ok(())
            }
            Err(error) => {
                // The planner's own deadline covers the lost answer.
                tracing::error!(%error, "a task of the driver panicked");
                Ok(())
            }
        }
    }

    fn count_failures(&mut self, outcome: Result<(), String>) -> Result<(), DriverError> {
        let Err(reason) = outcome else {
            self.store_failures = 0;
            return Ok(());
        };
        tracing::error!(error = reason, "the store did not take a transaction");
        self.store_failures += 1;
        if self.store_failures < STORE_FAILURES_MAX { Ok(()) } else { Err(DriverError::StoreFailed(reason)) }
    }

    fn tick(&mut self) {
        self.step(Event::Tick, None);
        self.ticks = self.ticks.wrapping_add(1);
        if self.ticks.is_multiple_of(TICKS_PER_CHECK) {
            self.check_invariants();
        }
    }

    /// Raises an alarm for each broken invariant, once while it lasts.
    fn check_invariants(&mut self) {
        let found: BTreeSet<String> =
            drover_invariants::check(self.planner.state()).iter().map(ToString::to_string).collect();
        // Builds a second inventory: only where the cluster is small enough for that to be quick.
        let small = self.planner.state().vms.len() <= VERIFIED_VMS_MAX;
        let kept = if small { self.planner.verify_book().err() } else { None };
        let kept = kept.map(|error| format!("placement-inventory: {error}"));
        let found: BTreeSet<String> = found.into_iter().chain(kept).collect();
        for alarm in found.difference(&self.alarms) {
            tracing::error!(invariant = alarm, "an invariant of the cluster does not hold");
        }
        self.alarms = found;
    }

    /// One step of the planner, and everything it asks for.
    fn step(&mut self, event: Event, mut heartbeat: Option<oneshot::Sender<HeartbeatAnswer>>) {
        let quiet = matches!(event, Event::Tick);
        let effects = self.planner.step(self.clock.now(), event);
        let mut records = Vec::new();
        let silent = quiet && effects.is_empty();
        for effect in effects {
            match effect {
                Effect::Commit { id, txn } => self.commit(id, txn),
                Effect::Call(call) => self.call(call),
                Effect::Fence(request) => self.fence(request),
                Effect::Record(event) => records.push(event),
                Effect::Answer(answer) => {
                    if let Some(heartbeat) = heartbeat.take() {
                        // An agent that has hung up asks again.
                        let _unread = heartbeat.send(answer);
                    }
                }
            }
        }
        self.record(records);
        if !silent {
            self.changed.send_modify(|count| *count = count.wrapping_add(1));
        }
    }

    fn commit(&mut self, commit: CommitId, txn: Txn) {
        let committer = Arc::clone(&self.committer);
        self.tasks.spawn(async move {
            let (store, outcome) = match tokio::time::timeout(COMMIT_TIMEOUT, committer.commit(&txn)).await {
                Ok(CommitOutcome::Unknown(reason)) => (Err(reason.clone()), CommitOutcome::Unknown(reason)),
                Ok(outcome) => (Ok(()), outcome),
                // Slow is not broken.
                Err(_) => (Ok(()), CommitOutcome::Unknown("the store is slow".to_owned())),
            };
            Done::Stored(store, Some(Event::Committed { commit, outcome }))
        });
    }

    fn call(&mut self, call: AgentCall) {
        let agents = Arc::clone(&self.agents);
        self.tasks.spawn(async move {
            let (id, timeout, name) = (call.id, call.timeout, call.command.name());
            let result = match tokio::time::timeout(timeout, agents.call(call)).await {
                Ok(result) => result,
                Err(_) => {
                    Err(CallError::Unanswered(format!("{name}: no answer within {} ms", timeout.as_millis())))
                }
            };
            Done::Answer(Event::Answered { call: id, result })
        });
    }

    fn fence(&mut self, request: FenceRequest) {
        let fence = Arc::clone(&self.fence);
        self.tasks.spawn(async move {
            let (id, volumes) = (request.id, request.volumes.clone());
            let results = match tokio::time::timeout(FENCE_TIMEOUT, fence.fence(request)).await {
                Ok(results) => results,
                Err(_) => {
                    let refusal = FenceRefusal(format!("no answer within {} s", FENCE_TIMEOUT.as_secs()));
                    volumes.into_iter().map(|(volume, _)| (volume, Err(refusal.clone()))).collect()
                }
            };
            Done::Answer(Event::VolumesFenced { request: id, results })
        });
    }

    fn record(&mut self, events: Vec<ClusterEvent>) {
        if events.is_empty() {
            return;
        }
        let committer = Arc::clone(&self.committer);
        self.tasks.spawn(async move {
            let outcome = committer.record(events).await;
            Done::Stored(outcome.map(drop).map_err(|error| describe(&error)), None)
        });
    }
}

/// Deletions for what is known but no longer stored.
fn missing(state: &ClusterState, snapshot: &Snapshot) -> Vec<Change> {
    let stored: BTreeSet<Key> = snapshot.records.iter().map(Change::key).collect();
    let known = (state.nodes.keys().map(|id| Key::Node(*id)))
        .chain(state.vms.keys().map(|id| Key::Vm(*id)))
        .chain(state.volumes.keys().map(|id| Key::Volume(*id)))
        .chain(state.images.keys().map(|name| Key::Image(name.clone())))
        .chain(state.pools.keys().map(|name| Key::Pool(name.clone())))
        .chain(state.disk_images.keys().map(|name| Key::DiskImage(name.clone())))
        .chain(state.operations.keys().map(|id| Key::Operation(*id)))
        .chain(state.names.keys().map(|(kind, name)| Key::Name(*kind, name.clone())))
        .chain(state.policies.keys().map(|name| Key::Policy(name.clone())))
        .chain(state.projects.keys().map(|name| Key::Project(name.clone())))
        .chain(state.settings.iter().map(|_| Key::Settings));
    let revision = snapshot.revision;
    known.filter(|key| !stored.contains(key)).map(|key| Change::Delete { revision, key }).collect()
}
