//! VMs' constraints.

use std::time::Duration;

use drover_cluster_state::{
    Affinity, Constraints, Domain, LabelRule, LabelTest, NumaPolicy, Peer, Preemption, Relation, Spread,
    Toleration,
};
use drover_ids::VmId;
use drover_units::Bytes;
use drover_wire::placement::v1 as wire;

use crate::{
    fields::{MessageError, each, error, name, names, optional_name, strength, text, texts, weight},
    host::{baseline, baseline_text},
};

/// Constraints, to be shown or stored. `vm_text` says how a VM is named there.
pub fn constraints_message(constraints: &Constraints, vm_text: impl Fn(VmId) -> String) -> wire::Constraints {
    let affinity = |rule: &Affinity| {
        let (vm, group) = match &rule.peer {
            Peer::Vm(vm) => (vm_text(*vm), String::new()),
            Peer::Group(group) => (String::new(), group.to_string()),
        };
        let relation = match rule.relation {
            Relation::Together => wire::Relation::Together,
            Relation::Apart => wire::Relation::Apart,
        };
        let (domain, weight) = (domain_text(rule.domain), weight(rule.strength));
        wire::Affinity { relation: relation.into(), vm, group, domain, weight }
    };
    let preemption = match constraints.preemption {
        Preemption::Never => wire::Preemption::Unspecified,
        Preemption::LowerPriority => wire::Preemption::LowerPriority,
    };
    let numa = match constraints.numa {
        NumaPolicy::Any => wire::NumaPolicy::Unspecified,
        NumaPolicy::Single => wire::NumaPolicy::Single,
        NumaPolicy::PreferSingle => wire::NumaPolicy::PreferSingle,
    };
    wire::Constraints {
        groups: texts(&constraints.groups),
        affinity: constraints.affinity.iter().map(affinity).collect(),
        spread: constraints.spread.iter().map(spread_message).collect(),
        labels: constraints.labels.iter().map(label_rule_message).collect(),
        tolerations: constraints.tolerations.iter().map(toleration_message).collect(),
        numa: numa.into(),
        pinned: constraints.pinned,
        hugepage_bytes: constraints.hugepages.map_or(0, Bytes::get),
        cpu_baseline: baseline_text(constraints.cpu_baseline),
        networks: texts(&constraints.networks),
        project: text(constraints.project.as_ref()),
        preemption: preemption.into(),
        lifetime_seconds: constraints.lifetime.map_or(0, |lifetime| lifetime.as_secs()),
        set: text(constraints.set.as_ref()),
    }
}

/// What a message says a VM's constraints are. `find` is told a VM's name or id.
///
/// # Errors
/// A field that breaks a rule, or a VM that is not there.
pub fn constraints_from(
    message: wire::Constraints,
    find: impl Fn(&str) -> Option<VmId>,
) -> Result<Constraints, MessageError> {
    let preemption = match wire::Preemption::try_from(message.preemption) {
        Ok(wire::Preemption::Unspecified) => Preemption::Never,
        Ok(wire::Preemption::LowerPriority) => Preemption::LowerPriority,
        Err(unknown) => return Err(error("preemption", unknown.to_string(), "lower-priority, or none")),
    };
    let numa = match wire::NumaPolicy::try_from(message.numa) {
        Ok(wire::NumaPolicy::Unspecified) => NumaPolicy::Any,
        Ok(wire::NumaPolicy::Single) => NumaPolicy::Single,
        Ok(wire::NumaPolicy::PreferSingle) => NumaPolicy::PreferSingle,
        Err(unknown) => return Err(error("numa", unknown.to_string(), "single, prefer-single, or none")),
    };
    let hugepages = (message.hugepage_bytes != 0).then(|| Bytes::new(message.hugepage_bytes));
    if hugepages.is_some_and(|page| page != Bytes::mib(2) && page != Bytes::gib(1)) {
        let problem = format!("it is {} bytes", message.hugepage_bytes);
        return Err(error("hugepage_bytes", problem, "2M or 1G"));
    }
    Ok(Constraints {
        groups: names("groups", &message.groups)?,
        affinity: each("affinity", message.affinity, |place, rule| affinity(place, &rule, &find))?,
        spread: each("spread", message.spread, |place, rule| spread(place, &rule))?,
        labels: each("labels", message.labels, |place, rule| label_rule(place, &rule))?,
        tolerations: each("tolerations", message.tolerations, |place, one| {
            Ok(Toleration {
                key: name(&format!("{place}.key"), &one.key)?,
                value: optional_name(&format!("{place}.value"), &one.value)?,
            })
        })?,
        numa,
        pinned: message.pinned,
        hugepages,
        cpu_baseline: baseline("cpu_baseline", &message.cpu_baseline)?,
        networks: names("networks", &message.networks)?,
        project: optional_name("project", &message.project)?,
        preemption,
        lifetime: (message.lifetime_seconds != 0).then(|| Duration::from_secs(message.lifetime_seconds)),
        set: optional_name("set", &message.set)?,
    })
}

fn affinity(
    place: &str,
    rule: &wire::Affinity,
    find: impl Fn(&str) -> Option<VmId>,
) -> Result<Affinity, MessageError> {
    let relation = match rule.relation() {
        wire::Relation::Together => Relation::Together,
        wire::Relation::Apart => Relation::Apart,
        wire::Relation::Unspecified => {
            let problem = format!("it is {}", rule.relation);
            return Err(error(format!("{place}.relation"), problem, "together or apart"));
        }
    };
    let peer = match (rule.vm.as_str(), rule.group.as_str()) {
        (vm, "") if !vm.is_empty() => Peer::Vm(find(vm).ok_or_else(|| {
            let shown: String = vm.chars().take(80).collect();
            error(format!("{place}.vm"), format!("there is no VM '{shown}'"), "a VM's name or id")
        })?),
        ("", group) if !group.is_empty() => Peer::Group(name(&format!("{place}.group"), group)?),
        _ => return Err(error(place, "it names neither, or both", "a VM or a group")),
    };
    Ok(Affinity {
        relation,
        peer,
        domain: domain(place, &rule.domain)?,
        strength: strength(place, rule.weight)?,
    })
}

fn domain(place: &str, text: &str) -> Result<Domain, MessageError> {
    match text {
        "" | "host" => Ok(Domain::Host),
        "rack" => Ok(Domain::Rack),
        "zone" => Ok(Domain::Zone),
        other => {
            let shown: String = other.chars().take(40).collect();
            Err(error(format!("{place}.domain"), format!("it is '{shown}'"), "host, rack or zone"))
        }
    }
}

fn domain_text(domain: Domain) -> String {
    if domain == Domain::Host { String::new() } else { domain.to_string() }
}

fn spread_message(rule: &Spread) -> wire::Spread {
    wire::Spread {
        group: rule.group.to_string(),
        domain: domain_text(rule.domain),
        max_skew: rule.max_skew,
        weight: weight(rule.strength),
    }
}

fn spread(place: &str, rule: &wire::Spread) -> Result<Spread, MessageError> {
    Ok(Spread {
        group: name(&format!("{place}.group"), &rule.group)?,
        domain: domain(place, &rule.domain)?,
        max_skew: rule.max_skew.max(1),
        strength: strength(place, rule.weight)?,
    })
}

fn label_rule_message(rule: &LabelRule) -> wire::LabelRule {
    let (test, values) = match &rule.test {
        LabelTest::In(values) => (wire::LabelTest::In, texts(values)),
        LabelTest::NotIn(values) => (wire::LabelTest::NotIn, texts(values)),
        LabelTest::Exists => (wire::LabelTest::Exists, Vec::new()),
        LabelTest::Absent => (wire::LabelTest::Absent, Vec::new()),
    };
    wire::LabelRule { key: rule.key.to_string(), test: test.into(), values, weight: weight(rule.strength) }
}

fn label_rule(place: &str, rule: &wire::LabelRule) -> Result<LabelRule, MessageError> {
    let values = names(&format!("{place}.values"), &rule.values)?;
    let test = match (rule.test(), values.is_empty()) {
        (wire::LabelTest::In, false) => LabelTest::In(values),
        (wire::LabelTest::NotIn, false) => LabelTest::NotIn(values),
        (wire::LabelTest::Exists, true) => LabelTest::Exists,
        (wire::LabelTest::Absent, true) => LabelTest::Absent,
        _ => {
            let valid = "in or not-in with values, exists or absent without";
            return Err(error(
                format!("{place}.test"),
                format!("it is {} with {} value(s)", rule.test, values.len()),
                valid,
            ));
        }
    };
    Ok(LabelRule {
        key: name(&format!("{place}.key"), &rule.key)?,
        test,
        strength: strength(place, rule.weight)?,
    })
}

fn toleration_message(toleration: &Toleration) -> wire::Toleration {
    wire::Toleration { key: toleration.key.to_string(), value: text(toleration.value.as_ref()) }
}
