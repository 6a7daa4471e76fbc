//! What the simulation cannot show because the honest source never does it.

use drover_guest_memory::GuestMemory;

use super::*;
use crate::{
    fake::{SOURCE_EPOCH, TARGET_EPOCH, fake_shape},
    wire::FrameEncoder,
};

struct Script {
    target: Target,
    now: Instant,
    encoder: FrameEncoder,
    /// What the source would say it has sent.
    sent: Ledger,
}

const PAGES: Pages = Pages::new(16);

fn hello() -> Hello {
    Hello {
        versions: (1, 1),
        features: 0,
        migration: MigrationId::from_u128(1),
        source_epoch: SOURCE_EPOCH,
        target_epoch: TARGET_EPOCH,
        shape: fake_shape(&GuestMemory::anonymous(PAGES.to_bytes().unwrap())),
    }
}

impl Script {
    fn new() -> Self {
        #[allow(clippy::disallowed_methods, reason = "any origin will do")]
        let now = Instant::now();
        let plan = TargetPlan {
            migration: MigrationId::from_u128(1),
            target_epoch: TARGET_EPOCH,
            timeouts: TargetTimeouts::default(),
        };
        let target = Target::new(plan, hello().shape, now);
        Self { target, now, encoder: FrameEncoder::default(), sent: Ledger::default() }
    }

    fn message(&mut self, message: Message) -> Vec<Effect> {
        let stamp = self.encoder.seal(message.kind(), &[&message.encode()]);
        self.sent.enter(&stamp, Pages::ZERO);
        self.target.step(self.now, Event::Received { stamp, message })
    }

    fn pages(&mut self, pages: Pages) -> Vec<Effect> {
        let stamp = self.encoder.seal(crate::wire::FrameKind::Pages, &[]);
        self.sent.enter(&stamp, pages);
        self.target.step(self.now, Event::PagesReceived { stamp, pages })
    }

    fn event(&mut self, event: Event) -> Vec<Effect> {
        self.target.step(self.now, event)
    }

    fn greeted() -> Self {
        let mut script = Self::new();
        let effects = script.message(Message::Hello(Box::new(hello())));
        assert_eq!(effects, [Effect::Send(Message::HelloAck { version: 1, features: 0 })]);
        script
    }

    fn copied() -> Self {
        let mut script = Self::greeted();
        assert_eq!(script.pages(PAGES), [Effect::ApplyPages]);
        let ledger = script.sent;
        let effects = script.message(Message::RoundEnd { round: 1, ledger });
        assert_eq!(effects, [Effect::Send(Message::RoundAck { round: 1, ledger })]);
        script
    }

    fn ready() -> Self {
        let mut script = Self::copied();
        let ledger = script.sent;
        assert_eq!(script.message(Message::Handover { ledger, envelopes: 0 }), [Effect::Restore(vec![])]);
        assert_eq!(script.event(Event::Restored), [Effect::Send(Message::Ready { ledger })]);
        script
    }

    fn committed() -> Self {
        let mut script = Self::ready();
        let effects = script.message(Message::Commit { target_epoch: TARGET_EPOCH });
        assert_eq!(effects, [Effect::AcquireVolumes(TARGET_EPOCH)]);
        script
    }
}

/// The effects discard the guest, tell the source and close; the reason contains `expect`.
fn check_discarded(script: &Script, effects: &[Effect], expect: &str) {
    let Some(Outcome::Discarded { reason, by_source: true }) = script.target.outcome() else {
        panic!("{:?}", script.target.outcome())
    };
    assert!(reason.text.contains(expect), "{reason}");
    assert_eq!(effects, [Effect::Discard, Effect::Send(Message::Abort(reason.clone())), Effect::Close]);
}

/// The connection is turned away, and the guest is still to be had.
fn check_turned_away(script: &Script, effects: &[Effect], expect: &str) {
    let Some(Outcome::Discarded { reason, by_source: false }) = script.target.outcome() else {
        panic!("{:?}", script.target.outcome())
    };
    assert!(reason.text.contains(expect), "{reason}");
    assert!(!effects.contains(&Effect::Discard));
    assert_eq!(effects.last(), Some(&Effect::Close));
}

#[test]
fn a_stranger_is_turned_away() {
    let mut script = Script::new();
    let effects = script.pages(PAGES);
    check_turned_away(&script, &effects, "began with something else than a Hello");

    let mut script = Script::new();
    let stray = Hello { migration: MigrationId::from_u128(99), ..hello() };
    let effects = script.message(Message::Hello(Box::new(stray)));
    check_turned_away(&script, &effects, "is not awaited here");

    let mut script = Script::new();
    script.now += TargetTimeouts::default().hello;
    let effects = script.event(Event::Tick);
    check_turned_away(&script, &effects, "did not introduce itself");
}

#[test]
fn the_right_source_with_the_wrong_guest_is_told_why() {
    let refused = |change: fn(&mut Hello), expect: &str| {
        let mut script = Script::new();
        let mut hello = hello();
        change(&mut hello);
        let effects = script.message(Message::Hello(Box::new(hello)));
        check_discarded(&script, &effects, expect);
    };
    refused(|hello| hello.shape.page_size = 1, "page sizes differ");
    refused(|hello| hello.target_epoch = TARGET_EPOCH.next(), "the epochs do not fit");
    refused(|hello| hello.source_epoch = TARGET_EPOCH, "the epochs do not fit");
    refused(|hello| hello.versions = (2, 3), "the source speaks versions 2 to 3, the target 1 to 1");
}

#[test]
fn a_newer_source_is_answered_in_a_version_that_both_know() {
    let mut script = Script::new();
    let effects = script.message(Message::Hello(Box::new(Hello { versions: (1, 9), ..hello() })));
    assert_eq!(effects, [Effect::Send(Message::HelloAck { version: 1, features: 0 })]);
}

#[test]
fn nothing_but_the_whole_guest_is_accepted() {
    let mut script = Script::greeted();
    script.pages(Pages::new(15));
    let ledger = script.sent;
    let effects = script.message(Message::RoundEnd { round: 1, ledger });
    check_discarded(&script, &effects, "did not send all of guest RAM");

    let mut script = Script::greeted();
    script.pages(PAGES);
    let ledger = Ledger { digest: script.sent.digest ^ 1, ..script.sent };
    let effects = script.message(Message::RoundEnd { round: 1, ledger });
    check_discarded(&script, &effects, "what was sent was not what was consumed");

    let mut script = Script::copied();
    let ledger = Ledger { frames: script.sent.frames + 1, ..script.sent };
    let effects = script.message(Message::Handover { ledger, envelopes: 0 });
    check_discarded(&script, &effects, "what was sent was not what was consumed");

    let mut script = Script::copied();
    let ledger = script.sent;
    let effects = script.message(Message::Handover { ledger, envelopes: 1 });
    check_discarded(&script, &effects, "what was sent was not what was consumed");
}

#[test]
fn what_comes_out_of_turn_is_refused() {
    let mut script = Script::greeted();
    let ledger = script.sent;
    let effects = script.message(Message::Handover { ledger, envelopes: 0 });
    check_discarded(&script, &effects, "before guest RAM was complete");

    let mut script = Script::copied();
    let ledger = script.sent;
    let effects = script.message(Message::RoundEnd { round: 1, ledger });
    check_discarded(&script, &effects, "what was sent was not what was consumed");

    let mut script = Script::copied();
    let state = Envelope::new(crate::fake::registers_kind(), 0, 1, vec![]);
    assert_eq!(script.message(Message::State(vec![state])), []);
    let effects = script.pages(PAGES);
    check_discarded(&script, &effects, "guest RAM after saved state");

    let mut script = Script::copied();
    let effects = script.message(Message::Commit { target_epoch: TARGET_EPOCH });
    check_discarded(&script, &effects, "sent Commit out of turn");

    let mut script = Script::ready();
    let effects = script.pages(PAGES);
    check_discarded(&script, &effects, "guest RAM after the hand-over");

    let mut script = Script::ready();
    let effects = script.message(Message::Commit { target_epoch: TARGET_EPOCH.next() });
    check_discarded(&script, &effects, "an epoch that is not the target's");
}

#[test]
fn saved_state_has_a_limit() {
    let mut script = Script::copied();
    let state = || vec![Envelope::new(crate::fake::registers_kind(), 0, 1, vec![0; 1 << 20])];
    for _ in 0..64 {
        assert_eq!(script.message(Message::State(state())), []);
    }
    let effects = script.message(Message::State(state()));
    check_discarded(&script, &effects, "more saved state than a machine can have");
}

#[test]
fn a_source_that_falls_silent_is_given_up() {
    let mut script = Script::copied();
    assert_eq!(script.event(Event::Tick), [], "not yet");
    script.now += TargetTimeouts::default().idle;
    let effects = script.event(Event::Tick);
    check_discarded(&script, &effects, "did not send anything within");

    let mut script = Script::ready();
    script.now += TargetTimeouts::default().commit;
    let effects = script.event(Event::Tick);
    check_discarded(&script, &effects, "did not commit within");
}

#[test]
fn after_commit_nothing_stops_the_guest_from_running() {
    let mut script = Script::committed();
    let lost = AbortReason::new(AbortCode::PeerLost, "gone");
    assert_eq!(script.event(Event::PeerLost(lost)), []);
    assert_eq!(script.event(Event::Cancel("no".to_owned())), []);
    assert_eq!(script.event(Event::Tick), []);
    assert_eq!(script.target.deadline(), None);
    assert_eq!(script.event(Event::VolumesAcquired), [Effect::Resume]);
    let confirmed = Effect::Send(Message::Resumed { target_epoch: TARGET_EPOCH });
    assert_eq!(script.event(Event::Resumed), [confirmed, Effect::Close]);
    assert_eq!(script.target.outcome(), Some(&Outcome::Running));
}

#[test]
fn after_commit_a_target_that_cannot_have_the_volumes_says_so_and_never_runs() {
    let mut script = Script::committed();
    let effects =
        script.event(Event::Failed { step: Step::AcquireVolumes, reason: "held by vm-9".to_owned() });
    let reason = AbortReason::new(AbortCode::Guest, "held by vm-9");
    assert_eq!(effects, [Effect::Discard, Effect::Send(Message::Abort(reason.clone())), Effect::Close]);
    assert_eq!(script.target.outcome(), Some(&Outcome::Failed { reason }));
    assert_eq!(script.event(Event::VolumesAcquired), []);
}
