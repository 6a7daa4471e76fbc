//! The probe's reports: one JSON object per line, named by its key `ev`.
//!
//! The guest displays an [`Event`]; with the feature `std` a host reads it back with `Event::parse`. Keys are only ever
//! added; a host passes over those that it does not know.

use core::fmt::{self, Display, Write};

/// The version of this vocabulary, as the boot line tells it.
pub const VOCABULARY: u32 = 1;
/// How a boot line of this version starts. The guest writes a boot line in three parts, each as soon as it can: this, a
/// [`BootLineMiddle`], and the number of vCPUs with the closing brace.
pub const BOOT_LINE_START: &str = r#"{"ev":"boot","probe":1,"#;

/// What a boot line says before the vCPUs are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BootLineMiddle {
    /// As in [`Event::Boot`].
    pub seed: u64,
    /// As in [`Event::Boot`].
    pub tsc: u64,
    /// As in [`Event::Boot`].
    pub tsc_khz: u64,
    /// As in [`Event::Boot`].
    pub incarnation: u64,
}

impl Display for BootLineMiddle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BootLineMiddle { seed, tsc, tsc_khz, incarnation } = self;
        write!(f, r#""seed":{seed},"tsc":{tsc},"tsc_khz":{tsc_khz},"incarnation":{incarnation},"vcpus":"#)
    }
}

/// One line of a probe's report. `Text` is whatever the writer can display or the reader keeps.
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(serde::Deserialize), serde(tag = "ev", rename_all = "lowercase"))]
pub enum Event<Text> {
    /// The first line of every life.
    Boot {
        /// The guest's [`VOCABULARY`].
        probe: u32,
        /// The seed from the command line.
        seed: u64,
        /// vCPUs that run.
        vcpus: u32,
        /// The TSC at entry.
        tsc: u64,
        /// The TSC's frequency, by which all `tsc` values become times.
        tsc_khz: u64,
        /// Random; 48 bits, so that every JSON reader keeps it exactly.
        incarnation: u64,
    },
    /// A heartbeat: `n` counts them from 1 without gaps, so a gap in `tsc` is time that the guest did not run.
    Hb {
        /// Counts from 1.
        n: u64,
        /// When.
        tsc: u64,
    },
    /// The longest time between two heartbeats of this life.
    HbMax {
        /// Microseconds.
        gap_us: u64,
    },
    /// The disk's state has changed.
    Disk {
        /// To what.
        state: DiskState,
        /// The highest sequence number found.
        max_seq: u64,
        /// The number that the probe goes on with: above it may be writes that were in flight when the last life ended.
        next_seq: u64,
        /// Blocks that hold a stamp.
        blocks: u64,
        /// Blocks that hold something else than a stamp or zeroes.
        bad: u64,
    },
    /// Every write with a sequence number up to `seq` is written and flushed.
    Ack {
        /// The highest such number.
        seq: u64,
        /// When.
        tsc: u64,
    },
    /// Blocks read back while writing goes on, since boot.
    Verify {
        /// How many.
        reads: u64,
        /// How many of those did not hold what was last written to them.
        bad: u64,
    },
    /// The measurement of the disk has settled: counting begins.
    BenchStart {
        /// When.
        tsc: u64,
    },
    /// The measurement of the disk is over.
    Bench(BenchFigures),
    /// Pages rewritten by one vCPU since boot; each was verified first.
    Dirty {
        /// Which vCPU.
        vcpu: u32,
        /// How many.
        pages: u64,
        /// How many of those did not hold what was last written to them.
        bad: u64,
    },
    /// Something about the disk that comes and goes.
    Visitor {
        /// What.
        state: VisitorState,
        /// Its number on the bus.
        device: u32,
        /// For [`VisitorState::Came`] and [`VisitorState::Kept`] the highest number of which, as of all below it, the write is
        /// on the disk.
        seq: u64,
        /// Blocks that did not hold what they should, since it came.
        bad: u64,
    },
    /// Something is wrong; the probe goes on where that makes sense.
    Error {
        /// What.
        what: Text,
    },
    /// The last line: the probe stops its machine.
    Halt {},
}

/// What a measurement of the disk counted. Latencies are from a request's submission until the guest saw its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(serde::Deserialize))]
pub struct BenchFigures {
    /// Requests that ended well.
    pub ops: u64,
    /// Requests that failed.
    pub failed: u64,
    /// Bytes that the former moved.
    pub bytes: u64,
    /// How long it counted, microseconds.
    pub us: u64,
    /// Half of the latencies are no longer than this, microseconds.
    pub p50_us: u64,
    /// 99 of 100 are no longer than this.
    pub p99_us: u64,
    /// 999 of 1000 are no longer than this.
    pub p999_us: u64,
    /// The longest.
    pub max_us: u64,
    /// Notifications sent to the device.
    pub kicks: u64,
    /// Interrupts taken from it.
    pub interrupts: u64,
}

impl Display for BenchFigures {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let BenchFigures { ops, failed, bytes, us, p50_us, p99_us, p999_us, max_us, kicks, interrupts } =
            self;
        write!(
            f,
            r#"{{"ev":"bench","ops":{ops},"failed":{failed},"bytes":{bytes},"us":{us},"p50_us":{p50_us},"p99_us":{p99_us},"#
        )?;
        write!(f, r#""p999_us":{p999_us},"max_us":{max_us},"kicks":{kicks},"interrupts":{interrupts}}}"#)
    }
}

/// What has happened to the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum DiskState {
    /// Every slot has been read back after boot; writing starts.
    Recovered,
}

impl Display for DiskState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            DiskState::Recovered => "recovered",
        })
    }
}

/// What has happened to the disk that comes and goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "std", derive(serde::Deserialize), serde(rename_all = "lowercase"))]
pub enum VisitorState {
    /// Every slot has been read; writing starts.
    Came,
    /// Writes are durable.
    Kept,
    /// It is asked back, and will be let go.
    Asked,
    /// It is asked back, and will be kept.
    Refused,
    /// It has been let go.
    LetGo,
    /// It is not there any more, and nobody has asked.
    Gone,
}

impl Display for VisitorState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            VisitorState::Came => "came",
            VisitorState::Kept => "kept",
            VisitorState::Asked => "asked",
            VisitorState::Refused => "refused",
            VisitorState::LetGo => "letgo",
            VisitorState::Gone => "gone",
        })
    }
}

impl<Text: Display> Display for Event<Text> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Event::Boot { probe, seed, vcpus, tsc, tsc_khz, incarnation } => {
                let middle =
                    BootLineMiddle { seed: *seed, tsc: *tsc, tsc_khz: *tsc_khz, incarnation: *incarnation };
                write!(f, r#"{{"ev":"boot","probe":{probe},{middle}{vcpus}}}"#)
            }
            Event::Hb { n, tsc } => write!(f, r#"{{"ev":"hb","n":{n},"tsc":{tsc}}}"#),
            Event::HbMax { gap_us } => write!(f, r#"{{"ev":"hbmax","gap_us":{gap_us}}}"#),
            Event::Disk { state, max_seq, next_seq, blocks, bad } => write!(
                f,
                r#"{{"ev":"disk","state":"{state}","max_seq":{max_seq},"next_seq":{next_seq},"blocks":{blocks},"bad":{bad}}}"#
            ),
            Event::Ack { seq, tsc } => write!(f, r#"{{"ev":"ack","seq":{seq},"tsc":{tsc}}}"#),
            Event::Verify { reads, bad } => write!(f, r#"{{"ev":"verify","reads":{reads},"bad":{bad}}}"#),
            Event::BenchStart { tsc } => write!(f, r#"{{"ev":"benchstart","tsc":{tsc}}}"#),
            Event::Bench(figures) => write!(f, "{figures}"),
            Event::Dirty { vcpu, pages, bad } => {
                write!(f, r#"{{"ev":"dirty","vcpu":{vcpu},"pages":{pages},"bad":{bad}}}"#)
            }
            Event::Visitor { state, device, seq, bad } => {
                write!(f, r#"{{"ev":"visitor","state":"{state}","device":{device},"seq":{seq},"bad":{bad}}}"#)
            }
            Event::Error { what } => {
                f.write_str(r#"{"ev":"error","what":""#)?;
                write!(JsonText(f), "{what}")?;
                f.write_str(r#""}"#)
            }
            Event::Halt {} => f.write_str(r#"{"ev":"halt"}"#),
        }
    }
}

#[cfg(feature = "std")]
impl Event<String> {
    /// Reads one line.
    ///
    /// # Errors
    /// The line is not a whole report that this version knows.
    pub fn parse(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line)
    }
}

/// Escapes what passes through as the inside of a JSON string (RFC 8259, section 7).
struct JsonText<'a, 'b>(&'a mut fmt::Formatter<'b>);

impl Write for JsonText<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            match character {
                '"' | '\\' => {
                    self.0.write_char('\\')?;
                    self.0.write_char(character)?;
                }
                '\0'..='\x1f' => write!(self.0, "\\u{:04x}", u32::from(character))?,
                _ => self.0.write_char(character)?,
            }
        }
        Ok(())
    }
}

#[cfg(all(test, feature = "std"))]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn check(event: Event<&str>, line: &str) {
        assert_eq!(event.to_string(), line);
    }

    #[test]
    fn lines_look_as_documented() {
        check(
            Event::Boot { probe: 1, seed: 2, vcpus: 2, tsc: 3, tsc_khz: 4, incarnation: 5 },
            r#"{"ev":"boot","probe":1,"seed":2,"tsc":3,"tsc_khz":4,"incarnation":5,"vcpus":2}"#,
        );
        check(Event::Hb { n: 1, tsc: 9 }, r#"{"ev":"hb","n":1,"tsc":9}"#);
        check(Event::HbMax { gap_us: 10_010 }, r#"{"ev":"hbmax","gap_us":10010}"#);
        check(
            Event::Disk { state: DiskState::Recovered, max_seq: 8, next_seq: 7, blocks: 6, bad: 0 },
            r#"{"ev":"disk","state":"recovered","max_seq":8,"next_seq":7,"blocks":6,"bad":0}"#,
        );
        check(Event::Ack { seq: 3, tsc: 4 }, r#"{"ev":"ack","seq":3,"tsc":4}"#);
        check(Event::Verify { reads: 3, bad: 0 }, r#"{"ev":"verify","reads":3,"bad":0}"#);
        check(Event::Dirty { vcpu: 1, pages: 3, bad: 0 }, r#"{"ev":"dirty","vcpu":1,"pages":3,"bad":0}"#);
        check(
            Event::Visitor { state: VisitorState::LetGo, device: 2, seq: 3, bad: 0 },
            r#"{"ev":"visitor","state":"letgo","device":2,"seq":3,"bad":0}"#,
        );
        check(Event::Error { what: "a \"b\"\n" }, r#"{"ev":"error","what":"a \"b\"\u000a"}"#);
        check(Event::Halt {}, r#"{"ev":"halt"}"#);
    }

    #[test]
    fn the_boot_line_starts_as_announced() {
        let boot: Event<&str> =
            Event::Boot { probe: VOCABULARY, seed: 2, vcpus: 2, tsc: 3, tsc_khz: 4, incarnation: 5 };
        assert!(boot.to_string().starts_with(BOOT_LINE_START));
    }

    #[test]
    fn unknown_keys_are_passed_over() {
        let parsed = Event::parse(r#"{"ev":"ack","seq":3,"tsc":4,"later":"more"}"#).unwrap();
        assert_eq!(parsed, Event::Ack { seq: 3, tsc: 4 });
    }

    #[test]
    fn torn_lines_are_refused() {
        let whole = Event::Ack::<&str> { seq: 31, tsc: 47 }.to_string();
        for cut in 0..whole.len() {
            assert!(Event::parse(&whole[..cut]).is_err(), "the first {cut} bytes");
            assert!(cut == 0 || Event::parse(&whole[cut..]).is_err(), "from byte {cut}");
        }
    }

    fn any_event() -> impl Strategy<Value = Event<String>> {
        let triple = any::<(u64, u64, u64)>();
        prop_oneof![
            (triple, any::<(u32, u64)>()).prop_map(|((seed, tsc, tsc_khz), (vcpus, incarnation))| {
                Event::Boot { probe: 1, seed, vcpus, tsc, tsc_khz, incarnation }
            }),
            any::<(u64, u64)>().prop_map(|(n, tsc)| Event::Hb { n, tsc }),
            any::<u64>().prop_map(|gap_us| Event::HbMax { gap_us }),
            any::<(u64, u64, u64, u64)>().prop_map(|(max_seq, next_seq, blocks, bad)| Event::Disk {
                state: DiskState::Recovered,
                max_seq,
                next_seq,
                blocks,
                bad
            }),
            any::<(u64, u64)>().prop_map(|(seq, tsc)| Event::Ack { seq, tsc }),
            any::<(u64, u64)>().prop_map(|(reads, bad)| Event::Verify { reads, bad }),
            any::<(u32, u64, u64)>().prop_map(|(vcpu, pages, bad)| Event::Dirty { vcpu, pages, bad }),
            any::<u64>().prop_map(|tsc| Event::BenchStart { tsc }),
            any::<(u32, u64, u64)>().prop_map(|(device, seq, bad)| Event::Visitor {
                state: VisitorState::Kept,
                device,
                seq,
                bad
            }),
            any::<[u64; 10]>().prop_map(
                |[ops, failed, bytes, us, p50_us, p99_us, p999_us, max_us, kicks, interrupts]| {
                    Event::Bench(BenchFigures {
                        ops,
                        failed,
                        bytes,
                        us,
                        p50_us,
                        p99_us,
                        p999_us,
                        max_us,
                        kicks,
                        interrupts,
                    })
                }
            ),
            any::<String>().prop_map(|what| Event::Error { what }),
            Just(Event::Halt {}),
        ]
    }

    proptest! {
        #[test]
        fn a_displayed_event_is_read_back(event in any_event()) {
            let line = event.to_string();
            prop_assert!(!line.contains('\n'));
            prop_assert_eq!(Event::parse(&line).unwrap(), event);
        }
    }
}
