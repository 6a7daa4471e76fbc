//! Hosts.

use std::collections::{BTreeMap, BTreeSet};

use drover_cluster_state::{
    Capacity, CpuBaseline, Drain, HostFacts, Labels, Name, NodeSettings, NumaNode, Overcommit, Ratio, Taint,
    TaintEffect,
};
use drover_units::{Bytes, VcpuCount};
use drover_wire::placement::v1 as wire;

use crate::fields::{
    MessageError, bounded, capacity, each, error, name, names, optional_name, reserve, text, texts,
};

/// A host's facts, to be sent or stored.
pub fn facts_message(facts: &HostFacts) -> wire::HostFacts {
    wire::HostFacts {
        labels: labels_message(&facts.labels),
        taints: facts.taints.iter().map(taint_message).collect(),
        cores: facts.cores,
        threads: facts.threads,
        numa: facts.numa.iter().map(numa_message).collect(),
        cpu_baseline: baseline_text(facts.cpu_baseline),
        networks: texts(&facts.networks),
        vcpu_overcommit_percent: ratio_number(facts.overcommit.vcpus),
        memory_overcommit_percent: ratio_number(facts.overcommit.memory),
        reserved: (facts.reserved != Capacity::default()).then(|| reserve(facts.reserved)),
    }
}

/// What a message says of a host.
///
/// # Errors
/// A field that breaks a rule.
pub fn facts_from(message: wire::HostFacts) -> Result<HostFacts, MessageError> {
    let ratio_or_one = |field: &str, percent| Ok(ratio(field, percent)?.unwrap_or_default());
    Ok(HostFacts {
        labels: labels("labels", message.labels)?,
        taints: taints("taints", message.taints)?,
        cores: message.cores,
        threads: message.threads,
        numa: each("numa", message.numa, |_, node| numa(node))?,
        cpu_baseline: baseline("cpu_baseline", &message.cpu_baseline)?,
        networks: names("networks", &message.networks)?,
        overcommit: Overcommit {
            vcpus: ratio_or_one("vcpu_overcommit_percent", message.vcpu_overcommit_percent)?,
            memory: ratio_or_one("memory_overcommit_percent", message.memory_overcommit_percent)?,
        },
        reserved: message.reserved.map(capacity).unwrap_or_default(),
    })
}

/// An operator's settings, to be shown or stored.
pub fn settings_message(settings: &NodeSettings) -> wire::NodeSettings {
    let set = settings.labels.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)));
    let removed = settings.labels.iter().filter(|(_, value)| value.is_none()).map(|(key, _)| key);
    wire::NodeSettings {
        labels: set.map(|(key, value)| label(key, value)).collect(),
        removed_labels: texts(removed),
        taints: settings.taints.iter().map(taint_message).collect(),
        vcpu_overcommit_percent: settings.vcpu_overcommit.map_or(0, Ratio::percent),
        memory_overcommit_percent: settings.memory_overcommit.map_or(0, Ratio::percent),
        reserved: settings.reserved.map(reserve),
        cordoned: settings.cordoned,
        drain_operation_id: settings.drain.map(|drain| drain.operation.to_string()).unwrap_or_default(),
    }
}

/// What a message says an operator has set.
///
/// # Errors
/// A field that breaks a rule.
pub fn settings_from(message: wire::NodeSettings) -> Result<NodeSettings, MessageError> {
    let mut all: BTreeMap<Name, Option<Name>> =
        labels("labels", message.labels)?.into_iter().map(|(key, value)| (key, Some(value))).collect();
    for key in names("removed_labels", &message.removed_labels)? {
        all.entry(key).or_default();
    }
    let drain = match message.drain_operation_id.as_str() {
        "" => None,
        id => Some(Drain {
            operation: id
                .parse()
                .map_err(|_| error("drain_operation_id", "it is no id", "an operation's id"))?,
        }),
    };
    Ok(NodeSettings {
        labels: all,
        taints: taints("taints", message.taints)?,
        vcpu_overcommit: ratio("vcpu_overcommit_percent", message.vcpu_overcommit_percent)?,
        memory_overcommit: ratio("memory_overcommit_percent", message.memory_overcommit_percent)?,
        reserved: message.reserved.map(capacity),
        cordoned: message.cordoned,
        drain,
    })
}

/// A taint, to be sent or stored.
pub fn taint_message(taint: &Taint) -> wire::Taint {
    let effect = match taint.effect {
        TaintEffect::Avoid => wire::TaintEffect::Avoid,
        TaintEffect::Refuse => wire::TaintEffect::Refuse,
    };
    wire::Taint { key: taint.key.to_string(), value: text(taint.value.as_ref()), effect: effect.into() }
}

/// The taint that a message says.
///
/// # Errors
/// A field that breaks a rule.
pub fn taint_from(field: &str, message: &wire::Taint) -> Result<Taint, MessageError> {
    let effect = match message.effect() {
        wire::TaintEffect::Avoid => TaintEffect::Avoid,
        wire::TaintEffect::Refuse => TaintEffect::Refuse,
        wire::TaintEffect::Unspecified => {
            return Err(error(
                format!("{field}.effect"),
                format!("it is {}", message.effect),
                "avoid or refuse",
            ));
        }
    };
    Ok(Taint {
        key: name(&format!("{field}.key"), &message.key)?,
        value: optional_name(&format!("{field}.value"), &message.value)?,
        effect,
    })
}

fn taints(field: &str, messages: Vec<wire::Taint>) -> Result<BTreeSet<Taint>, MessageError> {
    Ok(each(field, messages, |place, taint| taint_from(place, &taint))?.into_iter().collect())
}

fn label(key: &Name, value: &Name) -> wire::Label {
    wire::Label { key: key.to_string(), value: value.to_string() }
}

fn labels_message(labels: &Labels) -> Vec<wire::Label> {
    labels.iter().map(|(key, value)| label(key, value)).collect()
}

fn labels(field: &str, messages: Vec<wire::Label>) -> Result<Labels, MessageError> {
    let pairs = each(field, messages, |place, label| {
        Ok((name(&format!("{place}.key"), &label.key)?, name(&format!("{place}.value"), &label.value)?))
    })?;
    let count = pairs.len();
    let labels: Labels = pairs.into_iter().collect();
    if labels.len() < count {
        return Err(error(field, "a key is given twice", "each key once"));
    }
    Ok(labels)
}

fn numa_message(node: &NumaNode) -> wire::NumaNode {
    let pages = |(page, total): (&Bytes, &Bytes)| wire::Hugepages {
        page_bytes: page.get(),
        total_bytes: total.get(),
    };
    wire::NumaNode {
        id: node.id,
        cpus: node.cpus.get(),
        memory_bytes: node.memory.get(),
        hugepages: node.hugepages.iter().map(pages).collect(),
    }
}

fn numa(message: wire::NumaNode) -> Result<NumaNode, MessageError> {
    bounded("numa.hugepages", &message.hugepages)?;
    let pages = message.hugepages.iter().map(|p| (Bytes::new(p.page_bytes), Bytes::new(p.total_bytes)));
    Ok(NumaNode {
        id: message.id,
        cpus: VcpuCount::new(message.cpus),
        memory: Bytes::new(message.memory_bytes),
        hugepages: pages.collect(),
    })
}

pub(crate) fn baseline_text(baseline: CpuBaseline) -> String {
    if baseline == CpuBaseline::default() { String::new() } else { baseline.to_string() }
}

pub(crate) fn baseline(field: &str, text: &str) -> Result<CpuBaseline, MessageError> {
    match text {
        "" => Ok(CpuBaseline::default()),
        text => text.parse().map_err(|problem: drover_cluster_state::CpuBaselineError| {
            error(field, problem.to_string(), "x86-64-v1 to x86-64-v4")
        }),
    }
}

fn ratio_number(ratio: Ratio) -> u32 {
    if ratio == Ratio::ONE { 0 } else { ratio.percent() }
}

fn ratio(field: &str, percent: u32) -> Result<Option<Ratio>, MessageError> {
    if percent == 0 {
        return Ok(None);
    }
    let valid = || format!("{} to {}", Ratio::MIN.percent(), Ratio::MAX.percent());
    Ratio::from_percent(percent).map(Some).ok_or_else(|| error(field, format!("it is {percent}"), valid()))
}
