//! What happens when, and how reliably.

use drover_cluster_state::{Change, Moment, NodeFence, RunState, Txn};
use drover_ids::{NodeId, VmId};
use drover_reconcile::{
    AgentAnswer, AgentCall, AgentCommand, CallError, CommitId, CommitOutcome, Effect, Event, FenceRefusal,
    FenceRequest, Heartbeat, HeartbeatAnswer,
};

use super::{GUEST, Rng, TICK, World, moves::Stage};

/// Chances, per mille, and delays.
#[derive(Clone, Debug)]
pub(crate) struct Weather {
    /// A message is lost.
    pub(crate) loss: u64,
    /// A message takes seconds.
    pub(crate) slow: u64,
    /// The store does not answer.
    pub(crate) store_silent: u64,
    /// A start fails.
    pub(crate) start_fails: u64,
    /// A message between the two ends of a move is lost.
    pub(crate) move_loss: u64,
}

impl Weather {
    pub(crate) fn good() -> Self {
        Self { loss: 0, slow: 0, store_silent: 0, start_fails: 0, move_loss: 0 }
    }

    pub(crate) fn bad() -> Self {
        Self { loss: 50, slow: 30, store_silent: 20, start_fails: 30, move_loss: 100 }
    }

    fn delay(&self, rng: &mut Rng) -> u64 {
        if rng.chance(self.slow) { rng.range(500, 8_000) } else { rng.range(1, 10) }
    }

    pub(crate) fn watch_delay(&self, rng: &mut Rng) -> u64 {
        if rng.chance(self.slow) { rng.range(20, 300) } else { rng.range(1, 4) }
    }
}

/// Something that will happen.
#[allow(clippy::large_enum_variant, reason = "a test's queue is short")]
pub(crate) enum Happening {
    Tick {
        life: u64,
    },
    Guests,
    Watch {
        life: u64,
        changes: Vec<Change>,
    },
    /// A heartbeat leaves the agent that was started so-many-th.
    Heartbeat {
        node: NodeId,
        start: u32,
        again: bool,
    },
    HeartbeatArrives {
        heartbeat: Heartbeat,
        sent: u64,
        start: u32,
    },
    AnswerArrives {
        node: NodeId,
        start: u32,
        sent: u64,
        answer: HeartbeatAnswer,
    },
    Submit {
        life: u64,
        id: CommitId,
        txn: Txn,
    },
    Outcome {
        life: u64,
        id: CommitId,
        outcome: CommitOutcome,
    },
    CallArrives {
        life: u64,
        call: AgentCall,
        start: u32,
    },
    CallAnswered {
        life: u64,
        call: AgentCall,
        result: Result<AgentAnswer, CallError>,
    },
    Fence {
        life: u64,
        request: FenceRequest,
    },
    Boot {
        node: NodeId,
        vm: VmId,
    },
    Move {
        stage: Stage,
    },
}

impl World {
    pub(crate) fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Tick { life } => {
                if life == self.life && self.planner.is_some() {
                    self.feed(Event::Tick);
                    self.after(TICK, Happening::Tick { life });
                }
            }
            Happening::Guests => {
                self.run_guests();
                self.after(GUEST, Happening::Guests);
            }
            Happening::Watch { life, changes } => self.watch(life, changes),
            Happening::Heartbeat { node, start, again } => self.send_heartbeat(node, start, again),
            Happening::HeartbeatArrives { heartbeat, sent, start } => {
                self.heartbeat_arrives(heartbeat, sent, start)
            }
            Happening::AnswerArrives { node, start, sent, answer } => {
                self.answer_arrives(node, start, sent, answer)
            }
            Happening::Submit { life, id, txn } => {
                let outcome = match self.accept(txn) {
                    Ok(revision) => CommitOutcome::Committed(revision),
                    Err(fresh) => CommitOutcome::Conflict(fresh),
                };
                let silent = self.rng.chance(self.weather.store_silent);
                let outcome =
                    if silent { CommitOutcome::Unknown("the store is silent".to_owned()) } else { outcome };
                let delay = self.rng.range(1, 5);
                self.after(delay, Happening::Outcome { life, id, outcome });
            }
            Happening::Outcome { life, id, outcome } => {
                if life == self.life {
                    self.feed(Event::Committed { commit: id, outcome });
                }
            }
            Happening::CallArrives { life, call, start } => self.call_arrives(life, call, start),
            Happening::CallAnswered { life, call, result } => {
                if life == self.life {
                    self.feed(Event::Answered { call: call.id, result });
                }
            }
            Happening::Fence { life, request } => self.fence(life, request),
            Happening::Boot { node, vm } => self.booted(node, vm),
            Happening::Move { stage } => self.advance_move(stage),
        }
    }

    pub(crate) fn carry_out(&mut self, effect: Effect) {
        let life = self.life;
        match effect {
            Effect::Commit { id, txn } => {
                let delay = self.rng.range(1, 8);
                self.after(delay, Happening::Submit { life, id, txn });
            }
            Effect::Call(call) => self.send_call(life, call),
            Effect::Fence(request) => {
                let delay = self.rng.range(1, 20);
                self.after(delay, Happening::Fence { life, request });
            }
            Effect::Record(event) => self.log(&event),
            Effect::Answer(answer) => self.heartbeat_answer = Some(answer),
        }
    }

    fn send_call(&mut self, life: u64, call: AgentCall) {
        let unanswered = |why: &str| Err(CallError::Unanswered(why.to_owned()));
        let timeout = call.timeout.as_millis() as u64;
        let host = &self.hosts[&call.node];
        let start = host.start;
        if !host.serves() || !host.linked {
            self.after(20, Happening::CallAnswered { life, call, result: unanswered("connection refused") });
            return;
        }
        if self.rng.chance(self.weather.loss) {
            self.after(
                timeout,
                Happening::CallAnswered { life, call, result: unanswered("deadline exceeded") },
            );
            return;
        }
        let delay = self.weather.delay(&mut self.rng);
        self.after(delay, Happening::CallArrives { life, call, start });
    }

    fn call_arrives(&mut self, life: u64, call: AgentCall, start: u32) {
        let host = &self.hosts[&call.node];
        let gone = !host.serves() || !host.linked || host.start != start;
        if gone {
            let result = Err(CallError::Unanswered("connection reset".to_owned()));
            self.after(1, Happening::CallAnswered { life, call, result });
            return;
        }
        let result = self.obey(&call);
        let lost = self.rng.chance(self.weather.loss)
            || (self.lose_stops && matches!(call.command, AgentCommand::StopVm));
        let delay = if lost { call.timeout.as_millis() as u64 } else { self.weather.delay(&mut self.rng) };
        let result = if lost { Err(CallError::Unanswered("deadline exceeded".to_owned())) } else { result };
        self.after(delay, Happening::CallAnswered { life, call, result });
    }

    fn fence(&mut self, life: u64, request: FenceRequest) {
        let FenceRequest { id, vm, volumes, min_epoch, .. } = request;
        let mut results = Vec::new();
        for (volume, _) in volumes {
            let disk = self.disks.get_mut(&volume).expect("the volume is there");
            results.push((volume, disk.fence(volume, vm, min_epoch).map_err(FenceRefusal)));
        }
        if life == self.life {
            self.feed(Event::VolumesFenced { request: id, results });
        }
    }

    /// Has an agent report at once.
    pub(crate) fn nudge(&mut self, node: NodeId) {
        let start = self.hosts[&node].start;
        self.after(1, Happening::Heartbeat { node, start, again: false });
    }

    fn send_heartbeat(&mut self, node: NodeId, start: u32, again: bool) {
        let Some(host) = self.hosts.get_mut(&node) else { return };
        if host.start != start || !host.serves() {
            return;
        }
        if again {
            let interval = Self::timers().get().heartbeat.as_millis() as u64;
            self.after(interval, Happening::Heartbeat { node, start, again: true });
        }
        let host = self.hosts.get_mut(&node).expect("it is there");
        if !host.linked {
            return;
        }
        if !host.registered {
            if self.planner.is_some() {
                self.register(node);
            }
            return;
        }
        host.sequence += 1;
        let vms = host.processes.iter().map(|(vm, process)| (*vm, process.report.clone())).collect();
        let heartbeat = Heartbeat { node, incarnation: host.incarnation(), sequence: host.sequence, vms };
        if self.hosts[&node].mute || self.rng.chance(self.weather.loss) {
            return;
        }
        let (sent, delay) = (self.now, self.weather.delay(&mut self.rng));
        self.after(delay, Happening::HeartbeatArrives { heartbeat, sent, start });
    }

    fn heartbeat_arrives(&mut self, heartbeat: Heartbeat, sent: u64, start: u32) {
        let node = heartbeat.node;
        self.heartbeat_answer = None;
        self.feed(Event::Heartbeat(heartbeat));
        let Some(answer) = self.heartbeat_answer.take() else { return };
        if let HeartbeatAnswer::Known { lease_granted: true, .. } = answer {
            let fence = &self.store.nodes[&node].fence;
            assert_eq!(*fence, NodeFence::Clear, "a lease for a node that was given up");
        }
        if !self.rng.chance(self.weather.loss) {
            let delay = self.weather.delay(&mut self.rng);
            self.after(delay, Happening::AnswerArrives { node, start, sent, answer });
        }
    }

    fn answer_arrives(&mut self, node: NodeId, start: u32, sent: u64, answer: HeartbeatAnswer) {
        let host = self.hosts.get_mut(&node).expect("it is there");
        if host.start != start || !host.serves() || !host.linked {
            return;
        }
        match answer {
            HeartbeatAnswer::Unknown { .. } => host.registered = false,
            HeartbeatAnswer::Known { lease_granted, reap, .. } => {
                let sent = Moment::from_millis(sent);
                if lease_granted && host.leased.is_none_or(|at| at < sent) {
                    host.leased = Some(sent);
                }
                for (vm, epoch) in reap {
                    let there = self.hosts[&node].processes.get(&vm);
                    if there.is_some_and(|p| p.report.epoch <= epoch && !p.has_ended()) {
                        self.end_process(node, vm, drover_cluster_state::StopReason::Command, "reaped");
                    }
                }
            }
        }
    }

    /// Each guest that executes writes; a VM whose lease is too old ends itself, whether or not an agent is there.
    fn run_guests(&mut self) {
        let kill = Self::timers().get().kill_after;
        for node in self.hosts.keys().copied().collect::<Vec<_>>() {
            let host = &self.hosts[&node];
            let expired = host.leased.is_none_or(|at| Moment::from_millis(self.now).since(at) >= kill);
            if host.up && expired {
                let live = host.processes.iter().filter(|(_, p)| !p.has_ended()).map(|(vm, _)| *vm);
                for vm in live.collect::<Vec<_>>() {
                    self.end_process(node, vm, drover_cluster_state::StopReason::SelfFenced, "exit status 3");
                }
            }
            if !self.may_run(&self.hosts[&node]) {
                continue;
            }
            let host = self.hosts.get_mut(&node).expect("it is there");
            for (vm, process) in &mut host.processes {
                let executes = matches!(process.report.state, RunState::Running | RunState::MigratingOut);
                if !executes || process.has_ended() {
                    continue;
                }
                for volume in &process.volumes {
                    let disk = self.disks.get_mut(volume).expect("it is there");
                    disk.write(node, *vm, process.report.epoch, &mut process.seen);
                }
            }
        }
    }
}
