//! What to do about a move, from what is known of its two ends. Total: every pair has an answer.
//!
//! | source \ target | runs     | waits        | out of use  | absent       | silent   |
//! |-----------------|----------|--------------|-------------|--------------|----------|
//! | serving         | complete | drive        | abort       | drive        | wait     |
//! | sending         | complete | drive        | withdraw    | drive        | drive    |
//! | aborted         | complete | abort        | abort       | abort        | abort    |
//! | committed       | complete | await commit | strand      | await commit | wait     |
//! | migrated        | complete | complete     | complete    | complete     | complete |
//! | gone            | complete | await target | release     | await target | wait     |
//! | lost            | complete | release      | release     | release      | wait     |
//! | silent          | complete | wait         | wait        | wait         | wait     |
//!
//! A move that is not wanted any more is withdrawn instead of driven. "Aborted" outweighs a silent target because a
//! source that has said so never commits; "migrated" outweighs a dead one because the target has run, so that its death
//! is that of an owner.

/// What is known of the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Source {
    /// Runs the VM and knows nothing of this migration.
    Serving,
    /// Runs the VM and sends it.
    Sending,
    /// Runs the VM and has given this migration up.
    Aborted,
    /// Has sent Commit, and is paused.
    Committed,
    /// Knows that the target runs.
    Migrated,
    /// Its process has ended; its node is well.
    Gone,
    /// Its node was given up.
    Lost,
    /// Nothing recent.
    Silent,
}

/// What is known of the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// Runs the VM.
    Running,
    /// Waits for the source, or receives.
    Waiting,
    /// Its process has ended, or its node was given up.
    Out,
    /// Its node is well and has no process of it.
    Absent,
    /// Nothing recent.
    Silent,
}

/// Both, and whether the move is still wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Situation {
    pub(super) source: Source,
    pub(super) target: Target,
    pub(super) wanted: bool,
}

/// What to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Judgement {
    /// The target is the owner.
    Complete,
    /// Go on: prepare, send, watch.
    Drive,
    /// Take it back, which the source may be too far to do.
    Withdraw,
    /// The source is the owner.
    Abort,
    /// Commit is on its way; soon the target runs, or something is wrong.
    AwaitCommit,
    /// The source is stuck behind Commit: fence the target, then let it resume.
    Strand,
    /// The source is gone; soon the target runs, or finds that it cannot.
    AwaitTarget,
    /// Nobody runs it: obtain evidence for both, restart from disks.
    ReleaseBoth,
    /// Nothing can be said.
    Wait,
}

pub(super) fn judge(situation: &Situation) -> Judgement {
    let Situation { source, target, wanted } = *situation;
    let drive = if wanted { Judgement::Drive } else { Judgement::Withdraw };
    match (source, target) {
        (_, Target::Running) | (Source::Migrated, _) => Judgement::Complete,
        (Source::Silent, _) => Judgement::Wait,
        (Source::Aborted, _) | (Source::Serving, Target::Out) => Judgement::Abort,
        (Source::Serving, Target::Silent) if wanted => Judgement::Wait,
        (Source::Serving, _) => drive,
        (Source::Sending, Target::Out) => Judgement::Withdraw,
        (Source::Sending, _) => drive,
        (Source::Committed, Target::Out) => Judgement::Strand,
        (Source::Committed | Source::Gone | Source::Lost, Target::Silent) => Judgement::Wait,
        (Source::Committed, _) => Judgement::AwaitCommit,
        (Source::Gone, Target::Out) | (Source::Lost, _) => Judgement::ReleaseBoth,
        (Source::Gone, _) => Judgement::AwaitTarget,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SOURCES: [Source; 8] = [
        Source::Serving,
        Source::Sending,
        Source::Aborted,
        Source::Committed,
        Source::Migrated,
        Source::Gone,
        Source::Lost,
        Source::Silent,
    ];
    const TARGETS: [Target; 5] =
        [Target::Running, Target::Waiting, Target::Out, Target::Absent, Target::Silent];

    fn name(judgement: Judgement) -> &'static str {
        match judgement {
            Judgement::Complete => "complete",
            Judgement::Drive => "drive",
            Judgement::Withdraw => "withdraw",
            Judgement::Abort => "abort",
            Judgement::AwaitCommit => "await commit",
            Judgement::Strand => "strand",
            Judgement::AwaitTarget => "await target",
            Judgement::ReleaseBoth => "release",
            Judgement::Wait => "wait",
        }
    }

    /// The table in this module's documentation, row by row.
    fn documented() -> Vec<Vec<String>> {
        let rows = include_str!("table.rs").lines().filter_map(|line| line.strip_prefix("//! | "));
        let cells = |row: &str| row.split('|').map(|cell| cell.trim().to_owned()).collect::<Vec<_>>();
        rows.skip(1).map(|row| cells(row)[1..6].to_vec()).collect()
    }

    #[test]
    fn the_documented_table_is_what_happens() {
        let table = documented();
        assert_eq!(table.len(), SOURCES.len());
        for (source, row) in SOURCES.into_iter().zip(table) {
            for (target, expect) in TARGETS.into_iter().zip(row) {
                let got = name(judge(&Situation { source, target, wanted: true }));
                assert_eq!(got, expect, "{source:?}, {target:?}");
            }
        }
    }

    #[test]
    fn what_is_not_wanted_is_not_driven_and_what_is_committed_is_not_taken_back() {
        for source in SOURCES {
            for target in TARGETS {
                let unwanted = judge(&Situation { source, target, wanted: false });
                let wanted = judge(&Situation { source, target, wanted: true });
                assert_ne!(unwanted, Judgement::Drive);
                if matches!(source, Source::Committed | Source::Migrated | Source::Gone | Source::Lost) {
                    assert_eq!(unwanted, wanted, "{source:?}, {target:?}");
                }
            }
        }
    }

    #[test]
    fn a_target_that_runs_is_never_taken_for_anything_else() {
        for source in SOURCES {
            for wanted in [true, false] {
                let judged = judge(&Situation { source, target: Target::Running, wanted });
                assert_eq!(judged, Judgement::Complete);
            }
        }
    }
}
