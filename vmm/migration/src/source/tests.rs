//! What the simulation cannot show because the honest target never does it, and the exact order of undoing.

use drover_guest_memory::GuestMemory;
use drover_ids::MigrationId;

use super::*;
use crate::{
    convergence::Limits,
    fake::{SOURCE_EPOCH, TARGET_EPOCH, fake_shape},
};

struct Script {
    source: Source,
    now: Instant,
}

const LEDGER: Ledger = Ledger { frames: 9, pages: Pages::new(16), digest: 0x1234 };
const OTHER: Ledger = Ledger { digest: 0x4321, ..LEDGER };

impl Script {
    fn new() -> Self {
        #[allow(clippy::disallowed_methods, reason = "any origin will do")]
        let now = Instant::now();
        let plan = SourcePlan {
            migration: MigrationId::from_u128(1),
            source_epoch: SOURCE_EPOCH,
            target_epoch: TARGET_EPOCH,
            limits: Limits::default(),
            timeouts: SourceTimeouts::default(),
        };
        let (source, effects) = Source::new(plan, fake_shape(&GuestMemory::anonymous(Bytes::kib(64))), now);
        assert_eq!(effects, [Effect::Connect { limit: SourceTimeouts::default().connect }]);
        Self { source, now }
    }

    fn event(&mut self, event: Event) -> Vec<Effect> {
        self.source.step(self.now, event)
    }

    fn hears(&mut self, message: Message) -> Vec<Effect> {
        self.event(Event::Received(message))
    }

    fn greeting() -> Self {
        let mut script = Self::new();
        assert!(matches!(&script.event(Event::Connected)[..], [Effect::Send(Message::Hello(_))]));
        script
    }

    fn copying() -> Self {
        let mut script = Self::greeting();
        let effects = script.hears(Message::HelloAck { version: 1, features: 0 });
        assert_eq!(effects, [Effect::StartDirtyLog]);
        assert_eq!(script.event(Event::DirtyLogStarted), [Effect::SendRound { round: 1 }]);
        script
    }

    fn sent(&mut self) {
        let sent = Event::RoundSent { pages: Pages::new(16), wire: Bytes::mib(8), ledger: LEDGER };
        assert_eq!(self.event(sent), []);
        self.now += Duration::from_millis(10);
    }

    fn acknowledged(&mut self, round: u32, dirty: u64) -> Vec<Effect> {
        self.sent();
        assert_eq!(self.hears(Message::RoundAck { round, ledger: LEDGER }), [Effect::TakeDirty]);
        self.event(Event::DirtyTaken { pages: Pages::new(dirty) })
    }

    fn pausing() -> Self {
        let mut script = Self::copying();
        assert_eq!(script.acknowledged(1, 3), [Effect::SendRound { round: 2 }]);
        let limit = SourceTimeouts::default().switchover;
        assert_eq!(script.acknowledged(2, 2), [Effect::Pause { limit }]);
        script
    }

    fn awaiting_ready() -> Self {
        let mut script = Self::pausing();
        assert_eq!(script.event(Event::Paused), [Effect::SendHandover]);
        assert_eq!(script.event(Event::HandoverSent { wire: Bytes::kib(1), ledger: LEDGER }), []);
        script
    }

    fn releasing() -> Self {
        let mut script = Self::awaiting_ready();
        assert_eq!(script.hears(Message::Ready { ledger: LEDGER }), [Effect::ReleaseVolumes]);
        script
    }

    fn committed() -> Self {
        let mut script = Self::releasing();
        let commit = Effect::Send(Message::Commit { target_epoch: TARGET_EPOCH });
        assert_eq!(script.event(Event::VolumesReleased), [commit]);
        assert!(script.source.is_committed());
        script
    }
}

/// The guest is set going again and the target told why.
fn check_undone(script: &mut Script, effects: &[Effect], expect: &str) {
    assert_eq!(effects, [Effect::Rollback, Effect::Resume]);
    assert_eq!(script.source.outcome(), None, "not before the guest runs");
    let effects = script.event(Event::Resumed);
    check_aborted(script, &effects, expect);
}

fn check_aborted(script: &Script, effects: &[Effect], expect: &str) {
    let Some(Outcome::Aborted(reason)) = script.source.outcome() else {
        panic!("{:?}", script.source.outcome())
    };
    assert!(reason.text.contains(expect), "{reason}");
    assert_eq!(effects, [Effect::Send(Message::Abort(reason.clone())), Effect::Close]);
    assert_eq!(script.source.progress().phase, Phase::Aborted);
    assert!(!script.source.is_committed());
}

#[test]
fn an_answer_that_fits_no_question_ends_the_migration() {
    let mut script = Script::greeting();
    let effects = script.hears(Message::HelloAck { version: 2, features: 0 });
    check_aborted(&script, &effects, "agreed to version 2");

    let mut script = Script::greeting();
    let effects = script.hears(Message::Ready { ledger: LEDGER });
    check_aborted(&script, &effects, "sent Ready out of turn");

    for answer in [
        Message::RoundAck { round: 2, ledger: LEDGER },
        Message::RoundAck { round: 1, ledger: OTHER },
        Message::Resumed { target_epoch: TARGET_EPOCH },
    ] {
        let mut script = Script::copying();
        script.sent();
        let effects = script.hears(answer);
        assert_eq!(effects[0], Effect::Rollback);
        check_aborted(&script, &effects[1..], "the target broke the protocol");
    }
}

#[test]
fn a_target_that_is_ready_with_something_else_is_not_given_the_guest() {
    let mut script = Script::awaiting_ready();
    let effects = script.hears(Message::Ready { ledger: OTHER });
    check_undone(&mut script, &effects, "something else than what was sent");
}

#[test]
fn released_volumes_are_taken_back_before_anything_runs() {
    let mut script = Script::releasing();
    let effects = script.event(Event::Cancel("enough".to_owned()));
    assert_eq!(effects, [Effect::AcquireVolumes(SOURCE_EPOCH)]);
    assert_eq!(script.event(Event::VolumesReleased), [], "the answer to what was asked before");
    let effects = script.event(Event::VolumesAcquired);
    check_undone(&mut script, &effects, "enough");
}

#[test]
fn a_switchover_that_took_too_long_does_not_commit_even_at_the_last_moment() {
    let mut script = Script::releasing();
    script.now += SourceTimeouts::default().switchover;
    let effects = script.event(Event::VolumesReleased);
    assert_eq!(effects, [Effect::AcquireVolumes(SOURCE_EPOCH)]);
    let effects = script.event(Event::VolumesAcquired);
    check_undone(&mut script, &effects, "the switchover took longer than 2s");
}

#[test]
fn late_answers_do_not_disturb_the_undoing() {
    let mut script = Script::pausing();
    let effects = script.event(Event::Cancel("enough".to_owned()));
    for late in [Event::Failed { step: Step::Pause, reason: "stuck".to_owned() }, Event::Paused, Event::Tick]
    {
        assert_eq!(script.event(late), []);
    }
    check_undone(&mut script, &effects, "enough");
}

#[test]
fn a_guest_that_cannot_be_set_going_again_is_reported_as_such() {
    let mut script = Script::releasing();
    script.event(Event::PeerLost(AbortReason::new(AbortCode::PeerLost, "gone")));
    let failure = "fenced".to_owned();
    script.event(Event::Failed { step: Step::AcquireVolumes, reason: failure.clone() });
    let reason = AbortReason::new(AbortCode::PeerLost, "gone");
    assert_eq!(script.source.outcome(), Some(&Outcome::Stranded { reason, failure }));
    assert!(script.source.progress().detail.contains("fenced"));
}

#[test]
fn every_wait_for_the_target_ends() {
    let waits = [
        (Script::greeting(), SourceTimeouts::default().negotiate, "did not answer within"),
        (Script::awaiting_ready(), SourceTimeouts::default().switchover, "the switchover took longer"),
    ];
    for (mut script, limit, expect) in waits {
        assert_eq!(script.event(Event::Tick), [], "not yet");
        script.now += limit;
        assert!(!script.event(Event::Tick).is_empty());
        assert!(script.source.progress().detail.contains(expect), "{}", script.source.progress().detail);
    }
    let mut script = Script::copying();
    script.sent();
    script.now += SourceTimeouts::default().acknowledge;
    script.event(Event::Tick);
    assert!(script.source.progress().detail.contains("did not acknowledge round 1 within"));
    let mut script = Script::copying();
    script.now += Limits::default().copying_max;
    script.event(Event::Tick);
    assert!(script.source.progress().detail.contains("copying took longer"));
}

#[test]
fn after_commit_only_a_newer_epoch_brings_the_guest_back() {
    let mut script = Script::committed();
    let reason = AbortReason::new(AbortCode::Guest, "no volumes here");
    let refusals = [
        Event::Received(Message::Abort(reason.clone())),
        Event::Received(Message::Resumed { target_epoch: SOURCE_EPOCH }),
        Event::PeerLost(reason),
        Event::Cancel("please".to_owned()),
        Event::Grant(TARGET_EPOCH),
        Event::Resumed,
        Event::VolumesAcquired,
        Event::Tick,
    ];
    for event in refusals {
        assert_eq!(script.event(event.clone()), [], "{event:?}");
        assert!(script.source.outcome().is_none() && script.source.is_committed());
    }
    assert!(script.source.progress().detail.contains("is not newer"));
    script.now += SourceTimeouts::default().confirm;
    assert_eq!(script.event(Event::Tick), []);
    assert_eq!(script.source.deadline(), None, "reported once, then it waits for ever");
    assert!(script.source.progress().detail.contains("not confirmed within"));

    let newer = TARGET_EPOCH.next();
    assert_eq!(script.event(Event::Grant(newer)), [Effect::Close, Effect::AcquireVolumes(newer)]);
    assert_eq!(script.event(Event::VolumesAcquired), [Effect::Rollback, Effect::Resume]);
    script.event(Event::Resumed);
    assert_eq!(script.source.outcome(), Some(&Outcome::Granted(newer)));
}

#[test]
fn a_grant_that_fails_can_be_repeated() {
    let mut script = Script::committed();
    script.event(Event::Grant(TARGET_EPOCH.next()));
    script.event(Event::Failed { step: Step::AcquireVolumes, reason: "still held".to_owned() });
    assert!(script.source.outcome().is_none());
    assert_eq!(script.source.progress().grants_failed, 1);
    let again = TARGET_EPOCH.next().next();
    assert_eq!(script.event(Event::Grant(again)), [Effect::Close, Effect::AcquireVolumes(again)]);
}

#[test]
fn the_downtime_is_from_the_pause_to_the_targets_word() {
    let mut script = Script::pausing();
    script.now += Duration::from_millis(3);
    script.event(Event::Paused);
    script.event(Event::HandoverSent { wire: Bytes::kib(1), ledger: LEDGER });
    script.hears(Message::Ready { ledger: LEDGER });
    script.event(Event::VolumesReleased);
    script.now += Duration::from_millis(4);
    let effects = script.hears(Message::Resumed { target_epoch: TARGET_EPOCH });
    assert_eq!(effects, [Effect::Retire, Effect::Close]);
    assert_eq!(script.source.outcome(), Some(&Outcome::Retired));
    let progress = script.source.progress();
    assert_eq!((progress.downtime, progress.total), (Duration::from_millis(7), Duration::from_millis(27)));
    assert_eq!(progress.phase, Phase::SourceRetired);
}
