//! Reading a probe's console log.
//!
//! A log may begin in the middle of a line (it was rotated), end in one (its writer was killed or migrated), hold several
//! lives (the VM was restarted) or continue one that began in another log: give the logs of all nodes in order of time, and
//! a line that is spread over two of them becomes whole. Lines that are not whole reports are counted, not refused.

use std::time::Duration;

use crate::event::{BenchFigures, DiskState, Event, VisitorState};

/// Error texts kept from each life; the rest is counted.
const ERRORS_KEPT: usize = 32;

/// How every report starts; a quoted one inside an error's text has backslashes.
const REPORT_START: &str = r#"{"ev":"#;
/// The longest line that is waited for: far longer than any report.
const LINE_BYTES_MAX: usize = 16 << 10;

/// The lives of one VM, in order.
#[derive(Clone, Debug, Default)]
pub struct ConsoleLog {
    /// From boot to boot. The first has no boot line where the log begins later than that.
    pub lives: Vec<LogLife>,
    /// Lines that begin like a report and are not a whole one.
    pub torn_lines: u64,
    /// Lines of somebody else (firmware).
    pub foreign_lines: u64,
    first_line: Option<String>,
    /// The line that has not ended yet.
    partial: String,
}

/// What one life of a probe reported.
#[derive(Clone, Debug, Default)]
pub struct LogLife {
    /// The seed, where the log holds the boot line.
    pub seed: Option<u64>,
    /// vCPUs that run, 0 where the log does not hold the boot line.
    pub vcpus: u32,
    /// The TSC's frequency, where the log holds the boot line.
    pub tsc_khz: Option<u64>,
    /// The incarnation, where the log holds the boot line.
    pub incarnation: Option<u64>,
    /// What it found on the disk.
    pub recovered: Option<RecoveredLine>,
    /// The highest acknowledged sequence number, 0 for none.
    pub acked_max: u64,
    /// Acknowledgement lines.
    pub ack_lines: u64,
    /// Heartbeats in the log.
    pub heartbeats: u64,
    /// Heartbeats that were sent and are not in the log (rotated away or torn).
    pub heartbeats_missing: u64,
    /// The longest time between two heartbeats that follow each other, in TSC ticks.
    longest: Option<TickGap>,
    /// The longest time between two heartbeats as the guest itself saw it; it covers lines that the log has lost.
    pub heartbeat_gap_reported: Option<Duration>,
    last_heartbeat: Option<(u64, u64)>,
    /// Every time between two heartbeats of the log, whether lines between them are missing or not.
    gaps: Vec<TickGap>,
    /// Blocks read back.
    pub reads_verified: u64,
    /// Pages rewritten, all vCPUs together.
    pub pages_dirtied: u64,
    pages_by_vcpu: Vec<(u32, u64, u64)>,
    /// Blocks (at boot and read back) and pages that did not hold what they should.
    pub bad: u64,
    bad_reads: u64,
    /// Error lines.
    pub error_lines: u64,
    /// The first of them.
    pub errors: Vec<String>,
    /// What its measurement of the disk counted.
    pub bench: Option<BenchFigures>,
    /// Its measurement has begun to count.
    pub bench_started: bool,
    /// What became of the disk that comes and goes.
    pub visitor: VisitorLog,
    /// It stopped its machine itself.
    pub halted: bool,
}

/// What a life reported of the disk that comes and goes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VisitorLog {
    /// What happened, in order, without what was written meanwhile.
    pub story: Vec<VisitorState>,
    /// The highest number that it found when a disk came, of the last that came.
    pub found: u64,
    /// The highest number that is durable, 0 for none.
    pub kept_max: u64,
    bad: u64,
}

/// What a life found on its disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecoveredLine {
    /// The highest sequence number.
    pub max_seq: u64,
    /// The number it went on with.
    pub next_seq: u64,
    /// Blocks with a stamp.
    pub blocks: u64,
    /// Blocks with something else.
    pub bad: u64,
}

#[derive(Clone, Copy, Debug)]
struct TickGap {
    after: u64,
    ticks: u64,
}

/// A time between two heartbeats.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HeartbeatGap {
    /// The heartbeat before it.
    pub after: u64,
    /// From that heartbeat to the next: the period plus the time that the guest did not run.
    pub length: Duration,
}

/// An acknowledged write that the next life did not find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LostAtRestart {
    /// The highest number acknowledged before the restart.
    pub acked_max: u64,
    /// The number that the next life went on with; all below it were on the disk.
    pub next_seq: u64,
}

impl ConsoleLog {
    /// Reads one log.
    pub fn parse(text: &str) -> Self {
        Self::parse_all([text])
    }

    /// Reads the logs of one VM, oldest first.
    pub fn parse_all<'a>(texts: impl IntoIterator<Item = &'a str>) -> Self {
        let mut log = ConsoleLog::default();
        for text in texts {
            log.append(text);
        }
        log.finish();
        log
    }

    /// Reads on, from wherever the text before ended. A last line without its end waits for the rest.
    pub fn append(&mut self, text: &str) {
        for piece in text.split_inclusive('\n') {
            self.partial.push_str(piece);
            if piece.ends_with('\n') || self.partial.len() > LINE_BYTES_MAX {
                self.finish();
            }
        }
    }

    /// Takes the last line as it is: nothing follows.
    pub fn finish(&mut self) {
        let line = std::mem::take(&mut self.partial);
        let line = line.trim_matches(|character: char| character.is_control() || character == ' ');
        // A report that was cut off and the next one can stand on one line.
        let starts = line.match_indices(REPORT_START).map(|(start, _)| start);
        let mut begin = 0;
        for start in starts.chain([line.len()]) {
            self.take_piece(&line[begin..start]);
            begin = start;
        }
    }

    fn take_piece(&mut self, piece: &str) {
        if piece.is_empty() {
            return;
        }
        match Event::parse(piece) {
            Ok(event) => {
                self.first_line.get_or_insert_with(|| piece.to_owned());
                self.take(event);
            }
            Err(_) if piece.starts_with('{') || piece.ends_with('}') => self.torn_lines += 1,
            Err(_) => self.foreign_lines += 1,
        }
    }

    /// The first whole report.
    pub fn first_line(&self) -> Option<&str> {
        self.first_line.as_deref()
    }

    /// The highest acknowledged sequence number of all lives, 0 for none.
    pub fn acked_max(&self) -> u64 {
        self.lives.iter().map(|life| life.acked_max).max().unwrap_or(0)
    }

    /// The highest number that is durable on the disk that comes and goes, of all lives.
    pub fn visitor_kept_max(&self) -> u64 {
        self.lives.iter().map(|life| life.visitor.kept_max).max().unwrap_or(0)
    }

    /// Heartbeats of all lives.
    pub fn heartbeats(&self) -> u64 {
        self.lives.iter().map(|life| life.heartbeats).sum()
    }

    /// Blocks and pages of all lives that did not hold what they should.
    pub fn bad(&self) -> u64 {
        self.lives.iter().fold(0, |sum, life| sum.saturating_add(life.bad))
    }

    /// The longest time between two heartbeats of one life.
    pub fn longest_gap(&self) -> Option<HeartbeatGap> {
        self.lives.iter().filter_map(LogLife::longest_gap).max_by_key(|gap| gap.length)
    }

    /// Restarts that did not find what had been acknowledged before. The new life writes the missing numbers anew, so the
    /// disk does not show the loss afterwards.
    pub fn lost_at_restarts(&self) -> Vec<LostAtRestart> {
        let mut acked_max = 0;
        let mut lost = Vec::new();
        for life in &self.lives {
            if let Some(RecoveredLine { next_seq, .. }) = life.recovered
                && next_seq <= acked_max
            {
                lost.push(LostAtRestart { acked_max, next_seq });
            }
            acked_max = acked_max.max(life.acked_max);
        }
        lost
    }

    fn take(&mut self, event: Event<String>) {
        if matches!(event, Event::Boot { .. }) || self.lives.is_empty() {
            self.lives.push(LogLife::default());
        }
        if let Some(life) = self.lives.last_mut() {
            life.take(event);
        }
    }
}

impl LogLife {
    /// The longest time between two heartbeats that follow each other in the log. `None` with fewer than two, or where the
    /// log does not hold the boot line, which says how fast the TSC runs.
    pub fn longest_gap(&self) -> Option<HeartbeatGap> {
        self.measure(self.longest?)
    }

    /// The longest time between two heartbeats of the log, of those that end after heartbeat `since`; heartbeats that the log has
    /// lost count as not sent, so that a blackout never hides behind a torn line. `None` as for [`LogLife::longest_gap`].
    pub fn longest_gap_since(&self, since: u64) -> Option<HeartbeatGap> {
        let later = self.gaps.iter().skip_while(|gap| gap.after < since);
        self.measure(*later.max_by_key(|gap| gap.ticks)?)
    }

    fn measure(&self, TickGap { after, ticks }: TickGap) -> Option<HeartbeatGap> {
        let khz = self.tsc_khz.filter(|&khz| khz > 0)?;
        let nanos = u128::from(ticks) * 1_000_000 / u128::from(khz);
        let length = Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        Some(HeartbeatGap { after, length })
    }

    fn take(&mut self, event: Event<String>) {
        match event {
            Event::Boot { seed, vcpus, tsc_khz, incarnation, .. } => {
                self.seed = Some(seed);
                self.vcpus = vcpus;
                self.tsc_khz = Some(tsc_khz);
                self.incarnation = Some(incarnation);
            }
            Event::Hb { n, tsc } => self.take_heartbeat(n, tsc),
            Event::HbMax { gap_us } => {
                let gap = Duration::from_micros(gap_us);
                self.heartbeat_gap_reported = self.heartbeat_gap_reported.max(Some(gap));
            }
            Event::Disk { state: DiskState::Recovered, max_seq, next_seq, blocks, bad } => {
                self.recovered = Some(RecoveredLine { max_seq, next_seq, blocks, bad });
                self.bad = self.bad.saturating_add(bad);
            }
            Event::Ack { seq, .. } => {
                self.acked_max = self.acked_max.max(seq);
                self.ack_lines += 1;
            }
            Event::Verify { reads, bad } => {
                self.reads_verified = self.reads_verified.max(reads);
                self.bad = self.bad.saturating_add(bad.saturating_sub(self.bad_reads));
                self.bad_reads = self.bad_reads.max(bad);
            }
            Event::BenchStart { .. } => self.bench_started = true,
            Event::Bench(figures) => self.bench = Some(figures),
            Event::Dirty { vcpu, pages, bad } => self.take_dirty(vcpu, pages, bad),
            Event::Visitor { state, seq, bad, .. } => {
                match state {
                    VisitorState::Kept => self.visitor.kept_max = self.visitor.kept_max.max(seq),
                    VisitorState::Came => (self.visitor.found, self.visitor.bad) = (seq, 0),
                    _ => {}
                }
                if state != VisitorState::Kept {
                    self.visitor.story.push(state);
                }
                self.bad = self.bad.saturating_add(bad.saturating_sub(self.visitor.bad));
                self.visitor.bad = self.visitor.bad.max(bad);
            }
            Event::Error { what } => {
                self.error_lines += 1;
                if self.errors.len() < ERRORS_KEPT {
                    self.errors.push(what);
                }
            }
            Event::Halt {} => self.halted = true,
        }
    }

    fn take_heartbeat(&mut self, n: u64, tsc: u64) {
        self.heartbeats += 1;
        if let Some((after, before)) = self.last_heartbeat {
            let skipped = n.saturating_sub(after).saturating_sub(1);
            self.heartbeats_missing = self.heartbeats_missing.saturating_add(skipped);
            let ticks = tsc.saturating_sub(before);
            self.gaps.push(TickGap { after, ticks });
            if skipped == 0 && self.longest.is_none_or(|longest| longest.ticks < ticks) {
                self.longest = Some(TickGap { after, ticks });
            }
        }
        self.last_heartbeat = Some((n, tsc));
    }

    /// The counts are since boot, one series for each vCPU.
    fn take_dirty(&mut self, vcpu: u32, pages: u64, bad: u64) {
        let index = self.pages_by_vcpu.iter().position(|(known, ..)| *known == vcpu);
        let index = index.unwrap_or_else(|| {
            self.pages_by_vcpu.push((vcpu, 0, 0));
            self.pages_by_vcpu.len() - 1
        });
        let (_, pages_before, bad_before) = &mut self.pages_by_vcpu[index];
        self.pages_dirtied = self.pages_dirtied.saturating_add(pages.saturating_sub(*pages_before));
        self.bad = self.bad.saturating_add(bad.saturating_sub(*bad_before));
        *pages_before = pages.max(*pages_before);
        *bad_before = bad.max(*bad_before);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BOOT: &str =
        r#"{"ev":"boot","probe":1,"seed":7,"tsc":100,"tsc_khz":1000000,"incarnation":11,"vcpus":2}"#;

    fn heartbeat(n: u64, ms: u64) -> String {
        format!("{}\n", Event::<&str>::Hb { n, tsc: ms * 1_000_000 })
    }

    #[test]
    fn a_life_is_summed_up() {
        let text = format!(
            "SeaBIOS\r\n{BOOT}\r\n{}",
            r#"{"ev":"disk","state":"recovered","max_seq":8,"next_seq":7,"blocks":6,"bad":1}
{"ev":"ack","seq":9,"tsc":200}
{"ev":"ack","seq":12,"tsc":300}
{"ev":"verify","reads":3,"bad":0}
{"ev":"verify","reads":9,"bad":2}
{"ev":"verify","reads":12,"bad":2}
{"ev":"dirty","vcpu":1,"pages":100,"bad":0}
{"ev":"dirty","vcpu":2,"pages":50,"bad":0}
{"ev":"dirty","vcpu":1,"pages":180,"bad":1}
{"ev":"error","what":"no"}
{"ev":"halt"}
"#
        );
        let log = ConsoleLog::parse(&text);
        let [life] = &log.lives[..] else { panic!("one life: {log:?}") };
        assert_eq!(log.first_line(), Some(BOOT));
        assert_eq!((log.torn_lines, log.foreign_lines), (0, 1));
        assert_eq!(
            (life.seed, life.vcpus, life.tsc_khz, life.incarnation),
            (Some(7), 2, Some(1_000_000), Some(11))
        );
        assert_eq!(life.recovered, Some(RecoveredLine { max_seq: 8, next_seq: 7, blocks: 6, bad: 1 }));
        assert_eq!((life.acked_max, life.ack_lines), (12, 2));
        assert_eq!((life.reads_verified, life.pages_dirtied), (12, 230));
        assert_eq!(life.bad, 1 + 2 + 1);
        assert_eq!((life.error_lines, &life.errors[..]), (1, &["no".to_owned()][..]));
        assert!(life.halted);
    }

    #[test]
    fn the_longest_gap_is_found() {
        let text =
            [BOOT.to_owned() + "\n", heartbeat(1, 10), heartbeat(2, 20), heartbeat(3, 57), heartbeat(4, 67)];
        let gap = ConsoleLog::parse(&text.concat()).longest_gap();
        assert_eq!(gap, Some(HeartbeatGap { after: 2, length: Duration::from_millis(37) }));
    }

    #[test]
    fn the_longest_gap_since_a_heartbeat_leaves_out_what_was_before_and_counts_lost_lines() {
        let text = [
            BOOT.to_owned() + "\n",
            heartbeat(1, 10),
            heartbeat(2, 90),
            heartbeat(3, 100),
            heartbeat(6, 140),
        ];
        let log = ConsoleLog::parse(&text.concat());
        let since = |n| log.lives[0].longest_gap_since(n).map(|gap| (gap.after, gap.length.as_millis()));
        assert_eq!(since(0), Some((1, 80)));
        assert_eq!(since(2), Some((3, 40)));
        assert_eq!(since(6), None);
    }

    #[test]
    fn lost_lines_are_no_gap() {
        let text =
            [BOOT.to_owned() + "\n", heartbeat(1, 10), heartbeat(2, 20), heartbeat(5, 50), heartbeat(6, 61)];
        let log = ConsoleLog::parse(&text.concat());
        assert_eq!(log.lives[0].heartbeats_missing, 2);
        assert_eq!(log.longest_gap(), Some(HeartbeatGap { after: 5, length: Duration::from_millis(11) }));
    }

    #[test]
    fn a_migrated_life_goes_on_in_the_next_log() {
        let source = [BOOT.to_owned() + "\n", heartbeat(1, 10), heartbeat(2, 20)].concat();
        let target = [heartbeat(3, 45), heartbeat(4, 55)].concat();
        let log = ConsoleLog::parse_all([&source[..], &target]);
        assert_eq!(log.lives.len(), 1);
        assert_eq!(log.heartbeats(), 4);
        assert_eq!(log.longest_gap(), Some(HeartbeatGap { after: 2, length: Duration::from_millis(25) }));
    }

    #[test]
    fn torn_lines_at_either_end_are_counted() {
        let log = ConsoleLog::parse(
            "\"seq\":9,\"tsc\":200}\n{\"ev\":\"ack\",\"seq\":12,\"tsc\":300}\n{\"ev\":\"ack\",\"seq\":99",
        );
        assert_eq!((log.torn_lines, log.acked_max()), (2, 12));
    }

    #[test]
    fn a_line_spread_over_two_logs_is_whole() {
        let text = format!("{BOOT}\n{}", heartbeat(1, 10));
        for cut in 0..=text.len() {
            let log = ConsoleLog::parse_all([&text[..cut], &text[cut..]]);
            assert_eq!((log.heartbeats(), log.torn_lines, log.lives.len()), (1, 0, 1), "cut at {cut}");
        }
    }

    #[test]
    fn a_boot_line_behind_a_cut_off_line_begins_a_life() {
        let cut = format!("{BOOT}\n{{\"ev\":\"ack\",\"se{BOOT}\n");
        let log = ConsoleLog::parse(&cut);
        assert_eq!((log.lives.len(), log.torn_lines), (2, 1));
        let whole = format!("{BOOT}\n{{\"ev\":\"ack\",\"seq\":5,\"tsc\":6}}{BOOT}\n");
        let log = ConsoleLog::parse(&whole);
        assert_eq!((log.lives.len(), log.torn_lines, log.acked_max()), (2, 0, 5));
    }

    #[test]
    fn a_line_that_never_ends_is_given_up() {
        let mut log = ConsoleLog::default();
        for _ in 0..100 {
            log.append(&"x".repeat(1000));
        }
        assert!(log.partial.len() <= LINE_BYTES_MAX + 1000);
        assert!(log.foreign_lines > 0);
    }

    #[test]
    fn a_report_quoted_in_an_error_is_not_one() {
        let quoting = Event::Error { what: Event::<&str>::Hb { n: 1, tsc: 1 }.to_string() }.to_string();
        let log = ConsoleLog::parse(&quoting);
        assert_eq!((log.heartbeats(), log.lives[0].error_lines, log.torn_lines), (0, 1, 0));
    }

    #[test]
    fn a_restart_that_misses_an_acknowledged_write_is_reported() {
        let recovered = |next_seq: u64| {
            let line = Event::<&str>::Disk {
                state: DiskState::Recovered,
                max_seq: 20,
                next_seq,
                blocks: 20,
                bad: 0,
            };
            format!("{BOOT}\n{line}\n")
        };
        let first = format!("{}{}\n", recovered(1), Event::<&str>::Ack { seq: 12, tsc: 1 });
        let kept = ConsoleLog::parse_all([&first[..], &recovered(13)]);
        assert_eq!(kept.lost_at_restarts(), []);
        let lost = ConsoleLog::parse_all([&first[..], &recovered(12)]);
        assert_eq!(lost.lost_at_restarts(), [LostAtRestart { acked_max: 12, next_seq: 12 }]);
    }

    /// Whole lines with any numbers, and lines of anything.
    fn any_line() -> impl Strategy<Value = String> {
        let numbers = prop::collection::vec(prop_oneof![any::<u64>(), Just(u64::MAX)], 5);
        let template = prop::sample::select(vec![
            r#"{"ev":"boot","probe":1,"seed":#,"tsc":#,"tsc_khz":#,"incarnation":#,"vcpus":2}"#,
            r##"{"ev":"hb","n":#,"tsc":#}"##,
            r##"{"ev":"hbmax","gap_us":#}"##,
            r#"{"ev":"disk","state":"recovered","max_seq":#,"next_seq":#,"blocks":#,"bad":#}"#,
            r##"{"ev":"ack","seq":#,"tsc":#}"##,
            r##"{"ev":"verify","reads":#,"bad":#}"##,
            r#"{"ev":"dirty","vcpu":1,"pages":#,"bad":#}"#,
        ]);
        let filled = (template, numbers).prop_map(|(template, numbers)| {
            let fill = |line: String, number: u64| line.replacen('#', &number.to_string(), 1);
            numbers.into_iter().fold(template.to_owned(), fill)
        });
        prop_oneof![3 => filled, 1 => "\\PC*"]
    }

    proptest! {
        #[test]
        fn no_log_panics(lines in prop::collection::vec(any_line(), 0..20)) {
            let log = ConsoleLog::parse(&lines.join("\n"));
            let _summary = (log.longest_gap(), log.bad(), log.heartbeats(), log.lost_at_restarts());
        }
    }
}
