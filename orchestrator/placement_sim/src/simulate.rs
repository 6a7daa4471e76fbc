//! Running a trace.

use std::collections::BTreeMap;

use drover_placement_trace::{Action, Event, Moment, Trace, TraceVm};
use serde::Serialize;

use crate::{
    Ask, Cluster, HostIndex, Placer, Room, Sample,
    measure::{Ledger, room_of},
};

/// When to stop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Until {
    /// At the end of the trace; what is refused is left out and the rest goes on.
    #[default]
    End,
    /// As soon as a request is refused.
    FirstRejection,
}

/// How to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// When to stop.
    pub until: Until,
    /// Whether the placer may migrate VMs to make room for a request that it has refused.
    pub migrate: bool,
    /// Samples over the whole length of the trace, evenly spaced in time; one of the end comes after them.
    pub samples: u32,
}

impl Default for Options {
    fn default() -> Self {
        Self { until: Until::End, migrate: false, samples: 400 }
    }
}

/// How full the cluster was when a request was refused for the first time.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct FirstRejection {
    /// Days since the trace began.
    pub day: f64,
    /// Share of the virtual CPUs that were taken.
    pub cpu: f64,
    /// Share of the memory that was taken.
    pub memory: f64,
    /// Virtual CPUs of the refused request.
    pub vcpus: u32,
    /// Memory of the refused request.
    pub memory_bytes: u64,
}

/// What came of it.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    /// Requests that were placed.
    pub placed: u64,
    /// Requests that were refused.
    pub rejected: u64,
    /// VMs that were migrated to make room.
    pub migrated: u64,
    /// The first refusal.
    pub first_rejection: Option<FirstRejection>,
    /// The largest share of the virtual CPUs that was taken at one moment.
    pub cpu_max: f64,
    /// The largest share of the memory.
    pub memory_max: f64,
    /// The share of the virtual CPUs that was taken, the mean over time.
    pub cpu_mean: f64,
    /// The cluster over time.
    pub samples: Vec<Sample>,
}

/// A placer did what must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It chose a host that has not got the room.
    #[error("VM {} was placed on host {} which has no room for it", vm.0, host.0)]
    Overcommitted {
        /// The VM.
        vm: TraceVm,
        /// The host.
        host: HostIndex,
    },
    /// It moved a VM that is not there.
    #[error("VM {} was migrated and is nowhere", vm.0)]
    UnknownVm {
        /// The VM.
        vm: TraceVm,
    },
}

/// Runs a trace. `progress` is told after each event how many there have been.
///
/// # Errors
/// If the placer overcommits a host: its answers are checked here, by other code than its own.
pub fn simulate(
    cluster: &Cluster,
    trace: &Trace,
    placer: &mut dyn Placer,
    options: Options,
    progress: &mut dyn FnMut(usize),
) -> Result<Outcome, Error> {
    let mut run = Run::new(cluster, trace, options);
    for (index, event) in trace.events().iter().enumerate() {
        run.sample_up_to(event.at);
        match event.action {
            Action::Create { .. } => run.create(event, placer)?,
            Action::Delete => run.delete(event.vm, placer),
        }
        progress(index + 1);
        if options.until == Until::FirstRejection && run.outcome.rejected > 0 {
            break;
        }
    }
    Ok(run.finish())
}

struct Run<'a> {
    trace: &'a Trace,
    options: Options,
    ledger: Ledger,
    placed: BTreeMap<TraceVm, (HostIndex, Room)>,
    outcome: Outcome,
    now: Moment,
    /// When the next sample is due.
    due: Moment,
    /// Share of virtual CPUs times milliseconds.
    cpu_ms: f64,
}

impl<'a> Run<'a> {
    fn new(cluster: &Cluster, trace: &'a Trace, options: Options) -> Self {
        let outcome = Outcome {
            placed: 0,
            rejected: 0,
            migrated: 0,
            first_rejection: None,
            cpu_max: 0.0,
            memory_max: 0.0,
            cpu_mean: 0.0,
            samples: Vec::with_capacity(options.samples as usize + 1),
        };
        let ledger = Ledger::new(cluster, trace);
        let placed = BTreeMap::new();
        let (now, due) = (Moment::default(), Moment::default());
        Self { trace, options, ledger, placed, outcome, now, due, cpu_ms: 0.0 }
    }

    /// Time goes on to `at`, and the cluster is as it is until then.
    fn sample_up_to(&mut self, at: Moment) {
        self.cpu_ms += self.ledger.cpu() * (at.ms() - self.now.ms()) as f64;
        self.now = at;
        let step = (self.trace.end().ms() / u64::from(self.options.samples.max(1))).max(1);
        while self.options.samples > 0 && self.due <= at {
            self.outcome.samples.push(self.ledger.sample(self.due, self.outcome.rejected));
            self.due = Moment::from_ms(self.due.ms() + step);
        }
    }

    fn create(&mut self, event: &Event, placer: &mut dyn Placer) -> Result<(), Error> {
        let Action::Create { flavour, priority, lifetime } = event.action else { return Ok(()) };
        let flavour = self.trace.flavour(flavour);
        let ends = lifetime.map(|lifetime| event.at + lifetime.duration());
        let ask = Ask { vm: event.vm, flavour, priority, at: event.at, ends };
        let mut found = placer.place(&ask);
        if found.is_none() && self.options.migrate {
            let moves = placer.make_room(&ask);
            for step in &moves {
                self.migrate(step.vm, step.to)?;
            }
            if !moves.is_empty() {
                found = placer.place(&ask);
            }
        }
        let room = room_of(flavour);
        match found {
            Some(host) if self.ledger.take(host, room) => {
                self.placed.insert(event.vm, (host, room));
                self.outcome.placed += 1;
                self.outcome.cpu_max = self.outcome.cpu_max.max(self.ledger.cpu());
                self.outcome.memory_max = self.outcome.memory_max.max(self.ledger.memory());
            }
            Some(host) => return Err(Error::Overcommitted { vm: event.vm, host }),
            None => self.reject(&ask),
        }
        Ok(())
    }

    fn reject(&mut self, ask: &Ask) {
        self.outcome.rejected += 1;
        let first = FirstRejection {
            day: ask.at.days(),
            cpu: self.ledger.cpu(),
            memory: self.ledger.memory(),
            vcpus: ask.flavour.vcpus.get(),
            memory_bytes: ask.flavour.memory.get(),
        };
        self.outcome.first_rejection.get_or_insert(first);
    }

    fn migrate(&mut self, vm: TraceVm, to: HostIndex) -> Result<(), Error> {
        let (host, room) = self.placed.get_mut(&vm).ok_or(Error::UnknownVm { vm })?;
        // Both ends hold the VM while it moves.
        if !self.ledger.take(to, *room) {
            return Err(Error::Overcommitted { vm, host: to });
        }
        self.ledger.give_back(*host, *room);
        *host = to;
        self.outcome.migrated += 1;
        Ok(())
    }

    fn delete(&mut self, vm: TraceVm, placer: &mut dyn Placer) {
        // One that was refused is not there.
        if let Some((host, room)) = self.placed.remove(&vm) {
            self.ledger.give_back(host, room);
            placer.release(vm);
        }
    }

    fn finish(mut self) -> Outcome {
        self.outcome.samples.push(self.ledger.sample(self.now, self.outcome.rejected));
        self.outcome.cpu_mean = self.cpu_ms / (self.now.ms() as f64).max(1.0);
        self.outcome
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Heuristic, HeuristicPlacer, HostClass, Move};
    use drover_placement_trace::huawei;
    use drover_units::{Bytes, VcpuCount};

    fn cluster(hosts: usize) -> Cluster {
        Cluster::new(vec![HostClass::new("h", hosts, VcpuCount::new(4), Bytes::gib(8))]).unwrap()
    }

    fn trace(rows: &str) -> Trace {
        huawei::read(format!("vmid,cpu,memory,time,type\n{rows}").as_bytes()).unwrap()
    }

    fn run(hosts: usize, rows: &str, options: Options) -> Outcome {
        let cluster = cluster(hosts);
        let mut placer = HeuristicPlacer::new(Heuristic::FirstFit, &cluster);
        simulate(&cluster, &trace(rows), &mut placer, options, &mut |_| {}).unwrap()
    }

    const ROWS: &str = "1,4,4,0,0\n2,1,1,86400,0\n1,4,4,172800,1\n3,3,3,172800,0\n3,3,3,345600,1\n";

    #[test]
    fn what_is_refused_is_counted_and_the_rest_goes_on() {
        let outcome = run(1, ROWS, Options { samples: 4, ..Options::default() });
        assert_eq!((outcome.placed, outcome.rejected), (2, 1));
        let first = outcome.first_rejection.unwrap();
        assert_eq!((first.day, first.cpu, first.memory, first.vcpus), (1.0, 1.0, 0.5, 1));
        let cpu: Vec<f64> = outcome.samples.iter().map(|sample| sample.cpu).collect();
        assert_eq!(cpu, [0.0, 1.0, 1.0, 0.75, 0.75, 0.0]);
        assert_eq!((outcome.cpu_max, outcome.cpu_mean), (1.0, 0.875));
    }

    #[test]
    fn a_run_to_the_first_rejection_ends_there() {
        let options = Options { until: Until::FirstRejection, samples: 0, ..Options::default() };
        let outcome = run(1, ROWS, options);
        assert_eq!((outcome.placed, outcome.rejected), (1, 1));
        assert_eq!(run(2, ROWS, options).rejected, 0);
    }

    /// Puts everything on host 0, and moves what it is told.
    struct Careless(Vec<Move>);

    impl Placer for Careless {
        fn place(&mut self, ask: &Ask) -> Option<HostIndex> {
            (ask.vm.0 < 2 || self.0.is_empty()).then_some(HostIndex(0))
        }
        fn release(&mut self, _: TraceVm) {}
        fn make_room(&mut self, _: &Ask) -> Vec<Move> {
            std::mem::take(&mut self.0)
        }
    }

    #[test]
    fn a_placer_that_overcommits_is_found_out() {
        let (cluster, trace) = (cluster(2), trace("1,3,1,0,0\n2,3,1,1,0\n"));
        let mut placer = Careless(Vec::new());
        let outcome = simulate(&cluster, &trace, &mut placer, Options::default(), &mut |_| {});
        assert_eq!(outcome.unwrap_err(), Error::Overcommitted { vm: TraceVm(1), host: HostIndex(0) });
    }

    #[test]
    fn migrations_make_room_and_are_checked_like_placements() {
        let (cluster, trace) = (cluster(2), trace("1,2,1,0,0\n2,2,1,1,0\n3,2,1,2,0\n"));
        let options = Options { migrate: true, ..Options::default() };
        let run = |moves: Vec<Move>| simulate(&cluster, &trace, &mut Careless(moves), options, &mut |_| {});
        let to = |vm, host| Move { vm: TraceVm(vm), to: HostIndex(host) };
        let outcome = run(vec![to(0, 1)]).unwrap();
        assert_eq!((outcome.placed, outcome.migrated, outcome.rejected), (3, 1, 0));
        assert_eq!(run(vec![to(9, 1)]).unwrap_err(), Error::UnknownVm { vm: TraceVm(9) });
        assert_eq!(
            run(vec![to(0, 7)]).unwrap_err(),
            Error::Overcommitted { vm: TraceVm(0), host: HostIndex(7) }
        );
    }
}
