//! Checks of single fields.

use std::collections::BTreeSet;

use drover_cluster_state::{Capacity, Name, Strength};
use drover_units::{Bytes, VcpuCount};
use drover_wire::placement::v1 as wire;

/// Most entries of any list in these messages. A host with more labels, or a VM with more rules, is a mistake; and
/// each is looked at for every decision.
pub(crate) const ENTRIES_MAX: usize = 64;
/// Longest text that is kept of an explanation, bytes: it is stored with the operation.
pub(crate) const TEXT_LEN_MAX: usize = 1024;

/// A message that breaks a rule.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}; valid: {valid}")]
pub struct MessageError {
    /// The field's path: "affinity[2].vm".
    pub field: String,
    /// What is wrong.
    pub problem: String,
    /// What would be right.
    pub valid: String,
}

pub(crate) fn error(
    field: impl Into<String>,
    problem: impl Into<String>,
    valid: impl Into<String>,
) -> MessageError {
    MessageError { field: field.into(), problem: problem.into(), valid: valid.into() }
}

pub(crate) fn name(field: &str, text: &str) -> Result<Name, MessageError> {
    Name::new(text).map_err(|problem| error(field, problem.to_string(), "a name such as 'rack-1'"))
}

pub(crate) fn optional_name(field: &str, text: &str) -> Result<Option<Name>, MessageError> {
    if text.is_empty() { Ok(None) } else { name(field, text).map(Some) }
}

pub(crate) fn names(field: &str, texts: &[String]) -> Result<BTreeSet<Name>, MessageError> {
    bounded(field, texts)?;
    texts.iter().map(|text| name(field, text)).collect()
}

pub(crate) fn texts<'a>(names: impl IntoIterator<Item = &'a Name>) -> Vec<String> {
    names.into_iter().map(ToString::to_string).collect()
}

pub(crate) fn text(name: Option<&Name>) -> String {
    name.map(ToString::to_string).unwrap_or_default()
}

/// A list that is not too long.
pub(crate) fn bounded<T>(field: &str, list: &[T]) -> Result<(), MessageError> {
    if list.len() <= ENTRIES_MAX {
        return Ok(());
    }
    Err(error(field, format!("there are {}", list.len()), format!("at most {ENTRIES_MAX}")))
}

/// Each entry of a list that is not too long, with the path of the entry.
pub(crate) fn each<T, U>(
    field: &str,
    list: Vec<T>,
    one: impl Fn(&str, T) -> Result<U, MessageError>,
) -> Result<Vec<U>, MessageError> {
    bounded(field, &list)?;
    list.into_iter().enumerate().map(|(at, entry)| one(&format!("{field}[{at}]"), entry)).collect()
}

pub(crate) fn strength(field: &str, weight: u32) -> Result<Strength, MessageError> {
    match u8::try_from(weight) {
        Ok(0) => Ok(Strength::Required),
        Ok(weight @ 1..=100) => Ok(Strength::Preferred(weight)),
        _ => Err(error(
            format!("{field}.weight"),
            format!("it is {weight}"),
            "0 for a rule that must hold, or 1 to 100",
        )),
    }
}

pub(crate) fn weight(strength: Strength) -> u32 {
    match strength {
        Strength::Required => 0,
        Strength::Preferred(weight) => weight.into(),
    }
}

pub(crate) fn reserve(capacity: Capacity) -> wire::Reserve {
    wire::Reserve { vcpus: capacity.vcpus.get(), memory_bytes: capacity.memory.get() }
}

pub(crate) fn capacity(reserve: wire::Reserve) -> Capacity {
    Capacity { vcpus: VcpuCount::new(reserve.vcpus), memory: Bytes::new(reserve.memory_bytes) }
}
