//! Both drivers over real TCP on the loopback interface, with guests that write while they move.

use std::{
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use drover_ids::{MigrationId, OwnerEpoch};
use drover_saved_state::Envelope;
use drover_units::Bytes;

use super::{receive, send, send::PUBLISH_INTERVAL};
use crate::{
    MigrationControl, MigrationProgress, Phase, ProgressHandle,
    control::control,
    convergence::Limits,
    fake::{FakeGuest, Fault, Random, SOURCE_EPOCH, Side, TARGET_EPOCH, World},
    source::{self, SourcePlan, SourceTimeouts},
    target::{self, TargetPlan, TargetTimeouts},
    transport::{TcpConnector, TcpTarget},
    wire::AbortCode,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// One migration with both ends in this process. Fields can be changed before [`start`](Self::start).
struct Bench {
    world: Arc<World>,
    source: FakeGuest,
    target: FakeGuest,
    source_plan: SourcePlan,
    target_plan: TargetPlan,
    listener: TcpTarget,
    /// Where the source connects to, if not straight to the target.
    via: Option<String>,
}

/// A migration that is going on.
struct Running {
    world: Arc<World>,
    source_control: MigrationControl,
    target_control: MigrationControl,
    source_progress: ProgressHandle,
    phases: mpsc::Receiver<MigrationProgress>,
    source: thread::JoinHandle<(source::Outcome, FakeGuest)>,
    target: thread::JoinHandle<(target::Outcome, FakeGuest)>,
}

impl Bench {
    fn new(size: Bytes, seed: u64) -> Self {
        let world = Arc::new(World::default());
        let migration = MigrationId::from_u128(seed.into());
        Self {
            source: FakeGuest::running(&world, size, seed),
            target: FakeGuest::incoming(&world, size),
            source_plan: SourcePlan {
                migration,
                source_epoch: SOURCE_EPOCH,
                target_epoch: TARGET_EPOCH,
                limits: Limits::default(),
                timeouts: SourceTimeouts::default(),
            },
            target_plan: TargetPlan {
                migration,
                target_epoch: TARGET_EPOCH,
                timeouts: TargetTimeouts::default(),
            },
            listener: TcpTarget::bind("127.0.0.1:0").unwrap(),
            via: None,
            world,
        }
    }

    fn address(&self) -> String {
        self.listener.local_address().unwrap().to_string()
    }

    fn start(self) -> Running {
        let connector = TcpConnector::new(self.via.clone().unwrap_or_else(|| self.address()));
        let Self { world, source, target, source_plan, target_plan, listener, .. } = self;
        let (source_control, source_receiver) = control();
        let (target_control, target_receiver) = control();
        let (observed, phases) = mpsc::channel();
        let source_progress =
            ProgressHandle::observed_by(move |progress| drop(observed.send(progress.clone())));
        let source_thread = thread::spawn({
            let progress = source_progress.clone();
            let mut guest = source;
            move || (send(&mut guest, &connector, source_plan, source_receiver, &progress), guest)
        });
        let target_thread = thread::spawn({
            let mut guest = target;
            move || {
                let progress = ProgressHandle::default();
                (receive(&mut guest, &listener, target_plan, &target_receiver, &progress), guest)
            }
        });
        Running {
            world,
            source_control,
            target_control,
            source_progress,
            phases,
            source: source_thread,
            target: target_thread,
        }
    }
}

impl Running {
    /// Waits until the source's progress is as wanted.
    fn wait_for(&self, wanted: impl Fn(&MigrationProgress) -> bool) -> MigrationProgress {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let progress = self.phases.recv_timeout(left).expect("the progress comes");
            if wanted(&progress) {
                return progress;
            }
        }
    }

    /// Waits for both ends and checks what must hold however they ended.
    fn end(self) -> (source::Outcome, target::Outcome, MigrationProgress) {
        let (source_outcome, mut source) = self.source.join().unwrap();
        let (target_outcome, target) = self.target.join().unwrap();
        assert_eq!(self.world.violations(), Vec::<String>::new());
        let [at_source, at_target] = [Side::Source, Side::Target].map(|side| self.world.is_running(side));
        match &source_outcome {
            source::Outcome::Retired => {
                assert_eq!((at_source, at_target), (false, true));
                assert_eq!(target_outcome, target::Outcome::Running);
                assert_eq!(self.world.holder(), Some((Side::Target, TARGET_EPOCH)));
                assert!(target.memory_is_intact());
            }
            source::Outcome::Aborted(_) => {
                assert_eq!((at_source, at_target), (true, false));
                assert!(matches!(target_outcome, target::Outcome::Discarded { .. }), "{target_outcome:?}");
                assert_eq!(self.world.holder(), Some((Side::Source, SOURCE_EPOCH)));
                assert!(source.memory_is_intact());
                let logged = source.logged();
                assert_eq!(logged.union(&source.taken), logged, "pages that were taken are dirty again");
            }
            _ => assert!(!(at_source && at_target)),
        }
        (source_outcome, target_outcome, self.source_progress.latest())
    }
}

fn aborted_with(outcome: &source::Outcome) -> AbortCode {
    match outcome {
        source::Outcome::Aborted(reason) => reason.code,
        other => panic!("expected an abort, got {other:?}"),
    }
}

#[test]
fn a_guest_that_writes_all_the_time_arrives_whole() {
    let mut bench = Bench::new(Bytes::mib(24), 1);
    // 16 MiB/s, spread over all of RAM.
    bench.source.start_thread(4, Duration::from_millis(1));
    bench.target.start_thread(4, Duration::from_millis(1));
    let running = bench.start();
    let (source, target, progress) = running.end();
    assert_eq!((source, target), (source::Outcome::Retired, target::Outcome::Running));
    assert_eq!(progress.phase, Phase::SourceRetired);
    assert!(progress.rounds >= 2);
    // A third of RAM was written, and untouched pages are not sent.
    assert!(progress.bytes_sent > Bytes::mib(4) && progress.bytes_sent < Bytes::mib(24), "{progress:?}");
    assert!(progress.downtime > Duration::ZERO && progress.downtime <= progress.total);
}

#[test]
fn state_larger_than_a_frame_travels_too() {
    let mut bench = Bench::new(Bytes::mib(4), 2);
    let kind = crate::fake::registers_kind();
    let ballast: Vec<Envelope> =
        (1..40).map(|n| Envelope::new(kind.clone(), n, 1, vec![n as u8; 100_000])).collect();
    bench.source.ballast.clone_from(&ballast);
    bench.target.ballast = ballast;
    let (source, _, progress) = bench.start().end();
    assert_eq!(source, source::Outcome::Retired);
    assert!(progress.bytes_sent > Bytes::new(3_900_000), "{progress:?}");
}

#[test]
fn machines_that_differ_part_before_any_memory_moves() {
    let mut bench = Bench::new(Bytes::mib(4), 3);
    let mut shape = crate::MigratableGuest::shape(&bench.target);
    shape.devices[0].identity = "another".to_owned();
    bench.target.claimed = Some(shape);
    let (source, target, progress) = bench.start().end();
    assert_eq!(aborted_with(&source), AbortCode::Incompatible);
    assert!(matches!(target, target::Outcome::Discarded { by_source: true, .. }));
    assert!(progress.detail.contains("another"), "{}", progress.detail);
    assert_eq!(progress.rounds, 0);
}

#[test]
fn a_target_that_is_not_there_leaves_the_guest_running() {
    let mut bench = Bench::new(Bytes::mib(1), 4);
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    bench.via = Some(nobody.to_string());
    bench.target_plan.timeouts.reserved = Duration::from_millis(100);
    let (source, target, _) = bench.start().end();
    assert_eq!(aborted_with(&source), AbortCode::PeerLost);
    let target::Outcome::Discarded { reason, .. } = target else { panic!("{target:?}") };
    assert_eq!(reason.code, AbortCode::Timeout);
}

#[test]
fn strangers_are_turned_away_and_the_source_still_comes() {
    let bench = Bench::new(Bytes::mib(1), 5);
    for hostile in [&b"GET / HTTP/1.1\r\nHost: a host name long enough\r\n\r\n"[..], &[0xff; 4096], &[]] {
        let mut stranger = TcpStream::connect(bench.address()).unwrap();
        stranger.write_all(hostile).unwrap();
    }
    assert_eq!(bench.start().end().0, source::Outcome::Retired);
}

#[test]
fn a_cancel_in_the_middle_of_copying_leaves_the_guest_running() {
    let mut bench = Bench::new(Bytes::mib(32), 6);
    bench.source.start_thread(16, Duration::from_millis(1));
    // Never fits, so that copying goes on until it is cancelled.
    bench.source_plan.limits.downtime_target = Duration::ZERO;
    bench.source_plan.limits.rounds_max = u32::MAX;
    let running = bench.start();
    running.wait_for(|progress| progress.phase == Phase::Copying && progress.rounds >= 2);
    running.source_control.cancel("changed my mind");
    running.source_control.cancel("again");
    let (source, target, progress) = running.end();
    assert_eq!(aborted_with(&source), AbortCode::Cancelled);
    let target::Outcome::Discarded { reason, .. } = target else { panic!("{target:?}") };
    assert!(reason.text.contains("changed my mind"), "{reason}");
    assert_eq!(progress.phase, Phase::Aborted);
}

#[test]
fn a_cancel_at_the_target_reaches_the_source() {
    let mut bench = Bench::new(Bytes::mib(8), 7);
    bench.source.start_thread(16, Duration::from_millis(1));
    bench.source_plan.limits.downtime_target = Duration::ZERO;
    bench.source_plan.limits.rounds_max = u32::MAX;
    let running = bench.start();
    running.wait_for(|progress| progress.rounds >= 1);
    running.target_control.cancel("the host goes down");
    let (source, _, progress) = running.end();
    assert_eq!(aborted_with(&source), AbortCode::Cancelled);
    assert!(progress.detail.contains("the host goes down"), "{}", progress.detail);
}

#[test]
fn a_guest_that_does_not_converge_stays_and_the_reason_says_so() {
    let mut bench = Bench::new(Bytes::mib(4), 8);
    bench.source.start_thread(64, Duration::from_micros(500));
    bench.source_plan.limits.downtime_target = Duration::from_nanos(1);
    bench.source_plan.limits.rounds_max = 4;
    let (source, _, progress) = bench.start().end();
    assert_eq!(aborted_with(&source), AbortCode::NotConverging);
    assert!(progress.detail.contains("faster than it can be sent"), "{}", progress.detail);
}

#[test]
fn a_failure_at_the_target_after_commit_leaves_the_source_paused_until_it_is_granted() {
    let mut bench = Bench::new(Bytes::mib(1), 9);
    bench.target.faults.insert(Fault::Acquire);
    let running = bench.start();
    let progress =
        running.wait_for(|progress| progress.phase == Phase::Committed && !progress.detail.is_empty());
    assert!(progress.detail.contains("Acquire was made to fail"), "{}", progress.detail);
    assert!(!running.world.is_running(Side::Source));
    assert!(running.source_control.grant(TARGET_EPOCH).is_err());
    running.source_control.grant(TARGET_EPOCH.next()).unwrap();
    let world = Arc::clone(&running.world);
    let (source, target, _) = running.end();
    assert_eq!(source, source::Outcome::Granted(OwnerEpoch::new(6)));
    assert!(matches!(target, target::Outcome::Failed { .. }), "{target:?}");
    assert!(world.is_running(Side::Source));
}

#[test]
fn an_owner_that_stops_ends_a_source_that_stands_in_committed() {
    let mut bench = Bench::new(Bytes::mib(1), 10);
    bench.target.faults.insert(Fault::Acquire);
    let running = bench.start();
    running.wait_for(|progress| progress.phase == Phase::Committed);
    running.source_control.abandon();
    assert_eq!(running.end().0, source::Outcome::Abandoned);
}

/// Between the two ends: passes bytes on in both directions, until it has passed `limit` of them, or slowly.
struct Relay {
    address: String,
    cut: Arc<AtomicBool>,
}

impl Relay {
    fn start(target: String, limit: [u64; 2], pace: impl FnMut(usize) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let cut = Arc::new(AtomicBool::new(false));
        thread::spawn({
            let cut = Arc::clone(&cut);
            move || {
                let (from, _) = listener.accept().unwrap();
                let to = TcpStream::connect(target).unwrap();
                let back = (to.try_clone().unwrap(), from.try_clone().unwrap());
                let also = Arc::clone(&cut);
                let other = thread::spawn(move || pump(back.0, back.1, limit[1], |_| {}, &also));
                pump(from, to, limit[0], pace, &cut);
                other.join().unwrap();
            }
        });
        Self { address, cut }
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, limit: u64, mut pace: impl FnMut(usize), cut: &AtomicBool) {
    let mut buffer = vec![0; 16 << 10];
    let mut left = limit;
    while left > 0 {
        let most = buffer.len().min(usize::try_from(left).unwrap_or(usize::MAX));
        match from.read(&mut buffer[..most]) {
            Ok(0) | Err(_) => break,
            Ok(count) if to.write_all(&buffer[..count]).is_ok() => {
                left -= count as u64;
                pace(count);
            }
            Ok(_) => break,
        }
    }
    cut.store(true, Ordering::Relaxed);
    for stream in [&from, &to] {
        drop(stream.shutdown(std::net::Shutdown::Both));
    }
}

#[test]
fn a_connection_lost_at_any_byte_leaves_one_guest_or_one_that_waits() {
    let mut random = Random(0xd00d);
    let (mut aborted, mut committed) = (0, 0);
    // A run sends about 1.4 MB one way and 0.4 kB back; most of the answers are the protocol's last words.
    for seed in 0..40 {
        let mut bench = Bench::new(Bytes::mib(4), 100 + seed);
        bench.source.start_thread(2, Duration::from_millis(1));
        let towards = if seed % 2 == 0 { random.below(1_800_000) } else { u64::MAX };
        let back = if seed % 2 == 1 { random.below(280) } else { u64::MAX };
        let relay = Relay::start(bench.address(), [towards, back], |_| {});
        bench.via = Some(relay.address.clone());
        // No other connection will come.
        bench.target_plan.timeouts.reserved = Duration::from_millis(200);
        let running = bench.start();
        let progress = running.wait_for(|progress| {
            matches!(progress.phase, Phase::Aborted | Phase::SourceRetired)
                || (progress.phase == Phase::Committed && !progress.detail.is_empty())
        });
        if progress.phase == Phase::Committed {
            committed += 1;
            running.source_control.abandon();
        }
        let world = Arc::clone(&running.world);
        let (source, target, _) = running.end();
        match source {
            source::Outcome::Aborted(_) => aborted += 1,
            // The target has or has not heard the Commit; either way the source is not running.
            source::Outcome::Abandoned => {
                assert!(!world.is_running(Side::Source));
                assert_eq!(world.is_running(Side::Target), target == target::Outcome::Running);
            }
            source::Outcome::Retired => {
                assert!(!relay.cut.load(Ordering::Relaxed) || target == target::Outcome::Running)
            }
            other => panic!("{other:?}"),
        }
    }
    assert!(aborted > 10, "{aborted} aborts");
    assert!(committed < 20, "{committed} commits");
}

#[test]
fn a_slow_peer_is_measured_and_the_guest_still_arrives() {
    let mut bench = Bench::new(Bytes::mib(4), 12);
    // About 16 MB/s.
    let relay = Relay::start(bench.address(), [u64::MAX; 2], |_| wait(Duration::from_millis(1)));
    bench.via = Some(relay.address);
    bench.source.start_thread(1, Duration::from_millis(5));
    let (source, _, progress) = bench.start().end();
    assert_eq!(source, source::Outcome::Retired);
    let bandwidth = progress.bandwidth.get();
    assert!((500_000..40_000_000).contains(&bandwidth), "{bandwidth} B/s");
}

#[test]
fn a_peer_that_takes_nothing_does_not_keep_a_cancel_waiting() {
    let mut bench = Bench::new(Bytes::mib(64), 13);
    // Passes the first megabyte on, and then reads no more.
    let (end, ended) = mpsc::channel::<()>();
    let (stop, stopped) = mpsc::channel::<()>();
    let mut passed = 0;
    let relay = Relay::start(bench.address(), [u64::MAX; 2], move |count| {
        passed += count;
        if passed > 1 << 20 {
            stop.send(()).ok();
            // Until the test ends it, or gives up.
            ended.recv_timeout(PATIENCE).ok();
        }
    });
    bench.via = Some(relay.address);
    let running = bench.start();
    // The sockets in between are full, so that the source is stuck in a write.
    stopped.recv_timeout(PATIENCE).unwrap();
    let sent = || running.source_progress.latest().bytes_sent;
    let mut before = sent();
    wait(3 * PUBLISH_INTERVAL);
    while sent() != before {
        before = sent();
        wait(3 * PUBLISH_INTERVAL);
    }
    let asked = Instant::now();
    running.source_control.cancel("enough");
    running.wait_for(|progress| progress.phase == Phase::Aborted);
    assert!(asked.elapsed() < Duration::from_secs(2), "{:?}", asked.elapsed());
    drop(end);
    assert_eq!(aborted_with(&running.end().0), AbortCode::Cancelled);
}

/// A pause that is part of what is simulated (a slow network), not a wait for a state.
fn wait(time: Duration) {
    let (_sender, receiver) = mpsc::channel::<()>();
    receiver.recv_timeout(time).ok();
}

#[test]
fn a_listener_that_nobody_uses_can_be_cancelled() {
    let world = Arc::new(World::default());
    let mut guest = FakeGuest::incoming(&world, Bytes::mib(1));
    let listener = TcpTarget::bind("127.0.0.1:0").unwrap();
    let (control, receiver) = control();
    control.cancel("not needed");
    let plan = TargetPlan {
        migration: MigrationId::from_u128(1),
        target_epoch: TARGET_EPOCH,
        timeouts: TargetTimeouts::default(),
    };
    let outcome = receive(&mut guest, &listener, plan, &receiver, &ProgressHandle::default());
    assert!(
        matches!(outcome, target::Outcome::Discarded { reason, .. } if reason.code == AbortCode::Cancelled)
    );
}

#[test]
fn an_address_that_is_taken_is_an_error() {
    let first = TcpTarget::bind("127.0.0.1:0").unwrap();
    let address = first.local_address().unwrap().to_string();
    assert_eq!(TcpTarget::bind(&address).unwrap_err().kind(), io::ErrorKind::AddrInUse);
}
