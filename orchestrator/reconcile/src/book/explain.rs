//! What placement says, in the words that are stored and shown.

use drover_cluster_state::{Choice, Explanation, Name, NearestMiss, NodeRejection, RefusalCount, ScoreTerm};
use drover_ids::NodeId;
use drover_placement::{self as placement, Inventory, Outcome, Policy, Refusal, Request};

/// Nodes whose reasons are kept one by one with an operation; the rest are in the counts.
const REJECTIONS_KEPT: usize = 16;

/// Decides once more and says why. Looks at every host: for refusals and for people.
pub fn explain(inventory: &Inventory, request: &Request, policy: &Policy) -> Explanation {
    let said = placement::explain(inventory, request, policy);
    let mut notes = Vec::new();
    let chosen = match &said.outcome {
        Outcome::Chosen { decision, winner, runner_up, preferred } => {
            if !decision.victims.is_empty() {
                notes.push(format!("would take the place of {}", victims(inventory, decision)));
            }
            node_name(&winner.name).map(|name| Choice {
                node: winner.host,
                name,
                score: winner.score.0,
                terms: terms(winner),
                reason: why(winner, runner_up.as_ref(), *preferred, said.feasible),
            })
        }
        Outcome::Refused(Refusal::NoHost) => None,
        Outcome::Refused(refusal) => {
            notes.push(refusal.to_string());
            None
        }
    };
    Explanation {
        policy: said.policy,
        considered: count(said.hosts),
        feasible: count(said.feasible),
        refusals: said.refused.iter().map(refusal).collect(),
        nearest: if said.feasible == 0 {
            said.nearest.iter().filter_map(nearest).collect()
        } else {
            Vec::new()
        },
        chosen,
        notes,
    }
}

/// Everything against each node, for the first few.
pub(crate) fn rejections(inventory: &Inventory, request: &Request) -> Vec<NodeRejection> {
    let all = inventory.check_all(request);
    let refused = all
        .into_iter()
        .filter(|(host, reasons)| !reasons.is_empty() && request.only.is_none_or(|only| only == *host));
    let rejection = |(node, reasons): (NodeId, Vec<placement::Reason>)| {
        let name = node_name(inventory.host(node)?.name())?;
        Some(NodeRejection { node, name, reasons: reasons.iter().map(ToString::to_string).collect() })
    };
    refused.filter_map(rejection).take(REJECTIONS_KEPT).collect()
}

fn node_name(text: &str) -> Option<Name> {
    // The inventory was told of it by a node's record, which has a name.
    Name::new(text).ok()
}

fn count(number: usize) -> u32 {
    u32::try_from(number).unwrap_or(u32::MAX)
}

fn victims(inventory: &Inventory, decision: &placement::Decision) -> String {
    let name = |vm: &drover_ids::VmId| {
        inventory.vm(*vm).next().map_or_else(|| vm.to_string(), |view| format!("'{}'", view.name()))
    };
    decision.victims.iter().map(name).collect::<Vec<_>>().join(", ")
}

fn terms(contender: &placement::Contender) -> Vec<ScoreTerm> {
    let term = |term: &placement::TermScore| ScoreTerm {
        name: format!("{} x{}", term.term, term.weight),
        // Of TERM_SCALE, which is 100,000: in thousandths.
        value: term.value * 1000 / placement::TERM_SCALE,
    };
    contender.terms.iter().map(term).collect()
}

/// Why the winner won: the term that parts it most from the next best.
fn why(
    winner: &placement::Contender,
    runner_up: Option<&placement::Contender>,
    preferred: bool,
    feasible: usize,
) -> String {
    if preferred {
        return "it ran there before, and still fits".to_owned();
    }
    let Some(runner_up) = runner_up else {
        return if feasible == 1 { "no other host will do" } else { "it was asked for" }.to_owned();
    };
    let lead = |term: &placement::TermScore| {
        let other =
            runner_up.terms.iter().find(|other| other.term == term.term).map_or(0, |other| other.value);
        (term.value - other) * i64::from(term.weight)
    };
    match winner.terms.iter().map(|term| (lead(term), term)).max_by_key(|(lead, _)| *lead) {
        Some((lead, term)) if lead > 0 => format!(
            "best score, {} against {} of {}; most for '{}'",
            winner.score, runner_up.score, runner_up.name, term.term
        ),
        _ => format!("as good as {}, and ties are broken in a fixed order", runner_up.name),
    }
}

fn refusal(count_of: &placement::ReasonCount) -> RefusalCount {
    RefusalCount {
        reason: words(count_of.code).to_owned(),
        nodes: count(count_of.hosts),
        examples: vec![format!("{}: {}", count_of.example, count_of.reason)],
    }
}

fn nearest(miss: &placement::NearestMiss) -> Option<NearestMiss> {
    Some(NearestMiss {
        node: miss.host,
        name: node_name(&miss.name)?,
        reasons: miss.reasons.iter().map(ToString::to_string).collect(),
        remedy: match miss.remedies.as_slice() {
            [] => String::new(),
            remedies => format!("it would fit after: {}", remedies.join("; ")),
        },
    })
}

/// A reason without the numbers of one host.
fn words(code: &str) -> &str {
    match code {
        "not-ready" => "not taking VMs",
        "not-asked-for" => "not the one asked for",
        "excluded" => "ruled out by the request",
        "vcpus" => "with too few free vCPUs",
        "dedicated-threads" => "with too few free threads of its own",
        "memory" => "with too little free memory",
        "hugepages" => "with too few free hugepages",
        "numa" => "without room on one NUMA node",
        "label" => "without a required label",
        "taint" => "with a taint that is not tolerated",
        "pool" => "without a storage pool",
        "network" => "without a network",
        "cpu-baseline" => "below the CPU baseline",
        "affinity" => "away from VMs it must be with",
        "anti-affinity" => "with VMs it must be apart from",
        "kept-away" => "with VMs that must be apart from it",
        "spread" => "against the even spread of a group",
        other => other,
    }
}
