//! Rules about a VM's place, from words to messages.

use anyhow::{Context as _, bail};
use drover_client::placement_api::{
    Affinity, Constraints, Label, LabelRule, LabelTest, NumaPolicy, Preemption, Relation, Spread, Taint,
    TaintEffect, Toleration, Weight,
};

use crate::arguments::placement::{Numa, Where};

/// What the flags of `vm create` say.
pub(crate) fn constraints(flags: &Where) -> anyhow::Result<Option<Constraints>> {
    let mut affinity = Vec::new();
    for (flag, relation, texts) in
        [("--together", Relation::Together, &flags.together), ("--apart", Relation::Apart, &flags.apart)]
    {
        for text in texts {
            affinity.push(peer_rule(text, relation).with_context(|| format!("{flag} {text}"))?);
        }
    }
    let numa = match flags.numa {
        None => NumaPolicy::Unspecified,
        Some(Numa::Single) => NumaPolicy::Single,
        Some(Numa::PreferSingle) => NumaPolicy::PreferSingle,
    };
    let preemption = if flags.preempt { Preemption::LowerPriority } else { Preemption::Unspecified };
    let spread = flags.spread.iter().map(|text| spread(text).with_context(|| format!("--spread {text}")));
    let labels = flags.labels.iter().map(|text| label_rule(text).with_context(|| format!("--label {text}")));
    let constraints = Constraints {
        groups: flags.groups.clone(),
        affinity,
        spread: spread.collect::<anyhow::Result<_>>()?,
        labels: labels.collect::<anyhow::Result<_>>()?,
        tolerations: flags.tolerations.iter().map(|text| toleration(text)).collect(),
        numa: numa.into(),
        pinned: flags.pinned,
        hugepage_bytes: flags.hugepages.map_or(0, drover_units::Bytes::get),
        cpu_baseline: flags.cpu_baseline.clone(),
        networks: flags.networks.clone(),
        project: flags.project.clone(),
        preemption: preemption.into(),
        lifetime_seconds: flags.lifetime.map_or(0, |lifetime| lifetime.as_secs()),
        set: String::new(),
    };
    Ok((constraints != Constraints::default()).then_some(constraints))
}

/// Splits "~WEIGHT" off: 0 is a rule that must hold.
fn weighted(text: &str) -> anyhow::Result<(&str, u32)> {
    match text.rsplit_once('~') {
        None => Ok((text, 0)),
        Some((rule, weight)) => {
            let number = weight.parse().ok().filter(|weight| (1..=100).contains(weight));
            Ok((rule, number.with_context(|| format!("'{weight}' is no weight; valid: 1 to 100"))?))
        }
    }
}

fn peer_rule(text: &str, relation: Relation) -> anyhow::Result<Affinity> {
    let (rule, weight) = weighted(text)?;
    let (peer, domain) = rule.split_once('@').unwrap_or((rule, ""));
    let (vm, group) = match peer.split_once(':') {
        Some(("vm", vm)) => (vm.to_owned(), String::new()),
        Some(("group", group)) => (String::new(), group.to_owned()),
        _ => bail!("'{peer}' is no peer; valid: vm:NAME or group:NAME"),
    };
    Ok(Affinity { relation: relation.into(), vm, group, domain: domain.to_owned(), weight })
}

fn spread(text: &str) -> anyhow::Result<Spread> {
    let (rule, weight) = weighted(text)?;
    let (group, domain) = rule.split_once('@').context("it is not GROUP@DOMAIN, such as web@rack")?;
    let (domain, skew) = domain.split_once('=').unwrap_or((domain, "1"));
    let max_skew = skew.parse().ok().filter(|skew| *skew > 0);
    let max_skew = max_skew.with_context(|| format!("'{skew}' is no skew; valid: 1 or more"))?;
    Ok(Spread { group: group.to_owned(), domain: domain.to_owned(), max_skew, weight })
}

fn label_rule(text: &str) -> anyhow::Result<LabelRule> {
    let (rule, weight) = weighted(text)?;
    let values = |list: &str| list.split(',').map(str::to_owned).collect();
    let (key, test, values) = if let Some((key, list)) = rule.split_once("!=") {
        (key, LabelTest::NotIn, values(list))
    } else if let Some((key, list)) = rule.split_once('=') {
        (key, LabelTest::In, values(list))
    } else if let Some(key) = rule.strip_prefix('!') {
        (key, LabelTest::Absent, Vec::new())
    } else {
        (rule, LabelTest::Exists, Vec::new())
    };
    Ok(LabelRule { key: key.to_owned(), test: test.into(), values, weight })
}

fn toleration(text: &str) -> Toleration {
    let (key, value) = text.split_once('=').unwrap_or((text, ""));
    Toleration { key: key.to_owned(), value: value.to_owned() }
}

/// KEY=VALUE to set, KEY- to remove.
pub(crate) fn label_changes(texts: &[String]) -> anyhow::Result<(Vec<Label>, Vec<String>)> {
    let (mut set, mut remove) = (Vec::new(), Vec::new());
    for text in texts {
        match (text.split_once('='), text.strip_suffix('-')) {
            (Some((key, value)), _) => set.push(Label { key: key.to_owned(), value: value.to_owned() }),
            (None, Some(key)) => remove.push(key.to_owned()),
            (None, None) => {
                bail!("'{text}' is no change of a label; valid: KEY=VALUE to set, KEY- to remove")
            }
        }
    }
    Ok((set, remove))
}

/// KEY[=VALUE]:EFFECT to add, KEY- to remove.
pub(crate) fn taint_changes(texts: &[String]) -> anyhow::Result<(Vec<Taint>, Vec<String>)> {
    let (mut add, mut remove) = (Vec::new(), Vec::new());
    for text in texts {
        let Some((what, effect)) = text.rsplit_once(':') else {
            match text.strip_suffix('-') {
                Some(key) => remove.push(key.to_owned()),
                None => bail!(
                    "'{text}' is no change of a taint; valid: KEY[=VALUE]:refuse, KEY[=VALUE]:avoid, or KEY-"
                ),
            }
            continue;
        };
        let effect = match effect {
            "refuse" => TaintEffect::Refuse,
            "avoid" => TaintEffect::Avoid,
            other => bail!("'{other}' is no effect of a taint; valid: refuse, avoid"),
        };
        let (key, value) = what.split_once('=').unwrap_or((what, ""));
        add.push(Taint { key: key.to_owned(), value: value.to_owned(), effect: effect.into() });
    }
    Ok((add, remove))
}

/// TERM=WEIGHT.
pub(crate) fn weights(texts: &[String]) -> anyhow::Result<Vec<Weight>> {
    let weight = |text: &String| {
        let pair = text.split_once('=').and_then(|(term, weight)| Some((term, weight.parse().ok()?)));
        let (term, weight) =
            pair.with_context(|| format!("--weight: '{text}' is not TERM=WEIGHT, such as pack=100"))?;
        Ok(Weight { term: term.to_owned(), weight })
    };
    texts.iter().map(weight).collect()
}

/// A factor such as 2.5 as hundredths.
pub(crate) fn percent(flag: &str, factor: Option<f64>) -> anyhow::Result<Option<u32>> {
    match factor {
        None => Ok(None),
        Some(0.0) => Ok(Some(0)),
        // Within the limits, so that it fits.
        Some(factor) if (0.1..=16.0).contains(&factor) => Ok(Some((factor * 100.0).round() as u32)),
        Some(factor) => bail!("{flag}: {factor} is not within 0.1 and 16, nor 0"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_said_in_one_word() {
        let flags = Where {
            together: vec!["vm:db@rack~20".to_owned()],
            apart: vec!["group:web".to_owned()],
            spread: vec!["web@zone=2".to_owned()],
            labels: ["disk=ssd,nvme", "disk!=tape", "gpu", "!old~5"].map(str::to_owned).to_vec(),
            tolerations: vec!["gpu=a100".to_owned()],
            ..Where::default()
        };
        let said = constraints(&flags).unwrap().unwrap();
        assert_eq!((said.affinity[0].vm.as_str(), said.affinity[0].domain.as_str()), ("db", "rack"));
        assert_eq!((said.affinity[0].weight, said.affinity[1].weight), (20, 0));
        assert_eq!((said.affinity[1].group.as_str(), said.affinity[1].relation()), ("web", Relation::Apart));
        assert_eq!((said.spread[0].max_skew, said.spread[0].domain.as_str()), (2, "zone"));
        let tests: Vec<_> = said.labels.iter().map(LabelRule::test).collect();
        assert_eq!(tests, [LabelTest::In, LabelTest::NotIn, LabelTest::Exists, LabelTest::Absent]);
        assert_eq!(said.labels[0].values, ["ssd", "nvme"]);
        assert_eq!(said.tolerations[0].value, "a100");
        assert_eq!(constraints(&Where::default()).unwrap(), None);
    }

    #[test]
    fn what_is_no_rule_is_refused_with_what_would_be() {
        let check = |flags: Where, words: &str| {
            let error = format!("{:#}", constraints(&flags).unwrap_err());
            assert!(error.contains(words), "{error}");
        };
        check(Where { apart: vec!["web".to_owned()], ..Where::default() }, "vm:NAME or group:NAME");
        check(Where { apart: vec!["vm:a~200".to_owned()], ..Where::default() }, "1 to 100");
        check(Where { spread: vec!["web".to_owned()], ..Where::default() }, "GROUP@DOMAIN");
        check(Where { spread: vec!["web@rack=0".to_owned()], ..Where::default() }, "'0' is no skew");
        assert!(label_changes(&["rack".to_owned()]).is_err());
        assert!(taint_changes(&["gpu:kill".to_owned()]).is_err());
        assert!(weights(&["pack".to_owned()]).is_err());
        assert!(percent("--vcpu-overcommit", Some(20.0)).is_err());
    }

    #[test]
    fn labels_and_taints_are_set_and_removed() {
        let (set, remove) = label_changes(&["rack=r1".to_owned(), "old-".to_owned()]).unwrap();
        assert_eq!((set[0].value.as_str(), remove[0].as_str()), ("r1", "old"));
        let (add, remove) = taint_changes(&["gpu=x:refuse".to_owned(), "old-".to_owned()]).unwrap();
        assert_eq!((add[0].effect(), remove[0].as_str()), (TaintEffect::Refuse, "old"));
    }
}
