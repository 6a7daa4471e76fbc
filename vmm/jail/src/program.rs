//! The programs that the kernel runs for each system call (seccomp(2), bpf in its classic form), made when this crate is built.
//!
//! A call is found by halving: the kernel runs a new program for every call there is, to know which ones it need not be asked
//! about, while the thread waits.

use crate::lists::{Allowed, Condition};

/// One instruction: code, jump if true, jump if false, constant.
pub(crate) type Instruction = (u16, u8, u8, u32);

/// Loads a word of what the program is asked about.
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const RETURN: u16 = 0x06;

/// Where `struct seccomp_data` has what.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;
const X86_64: u32 = 0xc000_003e;

pub(crate) const ALLOW: u32 = 0x7fff_0000;
pub(crate) const TRAP: u32 = 0x0003_0000;
const KILL_PROCESS: u32 = 0x8000_0000;

/// What becomes of the calls from one number up to the next segment's.
struct Segment {
    first: u32,
    /// Allowed where one of them holds; always where it is empty.
    allowed: Option<Vec<Condition>>,
}

/// The program that lets these calls through, and traps all others.
pub(crate) fn compile(allowed: &Allowed) -> Vec<Instruction> {
    let mut program = vec![
        (LOAD, 0, 0, ARCHITECTURE),
        (JUMP_IF_EQUAL, 1, 0, X86_64),
        (RETURN, 0, 0, KILL_PROCESS),
        (LOAD, 0, 0, NUMBER),
    ];
    program.extend(halve(&segments(allowed)));
    program
}

fn segments(allowed: &Allowed) -> Vec<Segment> {
    let mut segments = vec![Segment { first: 0, allowed: None }];
    let mut begin = |first: u32, allowed: Option<&Vec<Condition>>| {
        let last = segments.last_mut().expect("there is one from the start on");
        if last.first == first {
            last.allowed = allowed.cloned();
        } else {
            segments.push(Segment { first, allowed: allowed.cloned() });
        }
    };
    for (call, conditions) in &allowed.0 {
        begin(call.id().cast_unsigned(), Some(conditions));
        begin(call.id().cast_unsigned() + 1, None);
    }
    // Neighbours that are always allowed are one.
    segments.dedup_by(|next, before| {
        let always = |segment: &Segment| segment.allowed.as_ref().is_some_and(Vec::is_empty);
        always(next) && always(before)
    });
    segments
}

/// Finds the segment of the loaded number and says what becomes of it.
fn halve(segments: &[Segment]) -> Vec<Instruction> {
    if let [segment] = segments {
        return verdict(segment.allowed.as_deref());
    }
    let (lower, upper) = segments.split_at(segments.len() / 2);
    let (below, above) = (halve(lower), halve(upper));
    let mut program = Vec::new();
    match u8::try_from(below.len()) {
        Ok(distance) => program.push((JUMP_IF_AT_LEAST, distance, 0, upper[0].first)),
        // A conditional jump reaches no farther than 255.
        Err(_) => {
            program.push((JUMP_IF_AT_LEAST, 0, 1, upper[0].first));
            program.push((JUMP, 0, 0, below.len() as u32));
        }
    }
    program.extend(below);
    program.extend(above);
    program
}

fn verdict(allowed: Option<&[Condition]>) -> Vec<Instruction> {
    let mut program = Vec::new();
    match allowed {
        Some([]) => return vec![(RETURN, 0, 0, ALLOW)],
        Some(conditions) => {
            for Condition { argument, mask, value } in conditions {
                program.push((LOAD, 0, 0, ARGUMENTS + 8 * u32::from(*argument)));
                program.extend(mask.map(|mask| (AND, 0, 0, mask)));
                program.push((JUMP_IF_EQUAL, 0, 1, mask.map_or(*value, |mask| value & mask)));
                program.push((RETURN, 0, 0, ALLOW));
            }
        }
        None => {}
    }
    program.push((RETURN, 0, 0, TRAP));
    program
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use drover_thread_role::Role;
    use seccompiler::{
        BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
        SeccompRule, TargetArch,
    };

    use super::*;
    use crate::needs::Needs;

    /// The same list in seccompiler's way.
    fn reference(allowed: &Allowed) -> Vec<Instruction> {
        let rule = |Condition { argument, mask, value }: &Condition| {
            let operator = mask.map_or(SeccompCmpOp::Eq, |mask| SeccompCmpOp::MaskedEq(mask.into()));
            let condition =
                SeccompCondition::new(*argument, SeccompCmpArgLen::Dword, operator, (*value).into());
            SeccompRule::new(vec![condition.expect("a condition")]).expect("a rule")
        };
        let rules: BTreeMap<_, _> = allowed
            .0
            .iter()
            .map(|(call, conditions)| (i64::from(call.id()), conditions.iter().map(rule).collect()))
            .collect();
        let filter = SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64);
        let program = BpfProgram::try_from(filter.expect("a filter")).expect("a program");
        program.iter().map(|one| (one.code, one.jt, one.jf, one.k)).collect()
    }

    /// What a program answers for this architecture, number and arguments; as the kernel runs it.
    fn run(program: &[Instruction], architecture: u32, number: u32, arguments: [u32; 6]) -> u32 {
        let (mut at, mut accumulator) = (0, 0);
        loop {
            let (code, jump_true, jump_false, constant) = program[at];
            at += 1;
            let mut jump = |holds: bool| at += usize::from(if holds { jump_true } else { jump_false });
            match code {
                LOAD => {
                    accumulator = match constant {
                        NUMBER => number,
                        ARCHITECTURE => architecture,
                        // The upper half of an argument is not looked at.
                        place => arguments[usize::try_from(place - ARGUMENTS).unwrap() / 8],
                    }
                }
                AND => accumulator &= constant,
                JUMP => at += usize::try_from(constant).unwrap(),
                JUMP_IF_EQUAL => jump(accumulator == constant),
                JUMP_IF_AT_LEAST => jump(accumulator >= constant),
                RETURN => return constant,
                other => panic!("code {other:#x}"),
            }
        }
    }

    fn check(allowed: &Allowed) {
        let (ours, theirs) = (compile(allowed), reference(allowed));
        let mut values = vec![0, 1, u32::MAX];
        for Condition { mask, value, .. } in allowed.0.values().flatten() {
            values.extend([*value, value ^ 1, mask.unwrap_or(0), !mask.unwrap_or(0)]);
        }
        // All calls, those of another ABI, and those that nobody has.
        for number in (0..600).chain(0x4000_0000..0x4000_0010).chain([u32::MAX - 1]) {
            for value in &values {
                let answers = [&ours, &theirs].map(|program| run(program, X86_64, number, [*value; 6]));
                assert_eq!(answers[0], answers[1], "call {number} with {value:#x}");
            }
        }
        assert_eq!([&ours, &theirs].map(|program| run(program, 0x4000_0003, 0, [0; 6])), [KILL_PROCESS; 2]);
    }

    #[test]
    fn a_program_answers_as_the_one_that_seccompiler_makes() {
        for needs in Needs::ALL {
            for role in Role::ALL {
                check(&Allowed::of(role, needs).expect("readable"));
            }
            check(&Allowed::of_process(needs).expect("readable"));
        }
        check(&Allowed::default());
    }

    #[test]
    fn a_call_is_found_in_a_few_steps() {
        let segments = segments(&Allowed::of_process(Needs::default()).expect("readable")).len();
        assert!(segments > 40, "{segments}");
        let steps = segments.next_power_of_two().ilog2();
        assert!(steps <= 8, "{steps} for {segments} segments");
    }
}
