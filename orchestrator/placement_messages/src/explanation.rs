//! What placement says.

use drover_cluster_state::{Choice, Explanation, NearestMiss, RefusalCount, ScoreTerm};
use drover_wire::placement::v1 as wire;

use crate::fields::{ENTRIES_MAX, MessageError, TEXT_LEN_MAX, each, error, name};

/// An explanation, to be sent or stored: its lists and texts are cut to what a record may hold.
pub fn explanation_message(explanation: &Explanation) -> wire::Explanation {
    wire::Explanation {
        policy: cut(&explanation.policy),
        considered: explanation.considered,
        feasible: explanation.feasible,
        refusals: explanation.refusals.iter().take(ENTRIES_MAX).map(refusal_message).collect(),
        nearest: explanation.nearest.iter().take(ENTRIES_MAX).map(nearest_message).collect(),
        chosen: explanation.chosen.as_ref().map(choice_message),
        notes: cut_all(&explanation.notes),
    }
}

/// The explanation that a message says.
///
/// # Errors
/// A field that breaks a rule.
pub fn explanation_from(message: wire::Explanation) -> Result<Explanation, MessageError> {
    let refusal = |_: &str, one: wire::RefusalCount| {
        Ok(RefusalCount { reason: one.reason, nodes: one.nodes, examples: one.examples })
    };
    let nearest = |place: &str, one: wire::NearestMiss| {
        Ok(NearestMiss {
            node: node_id(place, &one.node_id)?,
            name: name(&format!("{place}.node_name"), &one.node_name)?,
            reasons: one.reasons,
            remedy: one.remedy,
        })
    };
    Ok(Explanation {
        policy: message.policy,
        considered: message.considered,
        feasible: message.feasible,
        refusals: each("refusals", message.refusals, refusal)?,
        nearest: each("nearest", message.nearest, nearest)?,
        chosen: message.chosen.map(choice).transpose()?,
        notes: message.notes,
    })
}

fn node_id(place: &str, text: &str) -> Result<drover_ids::NodeId, MessageError> {
    text.parse().map_err(|_| error(format!("{place}.node_id"), "it is no id", "a node's id"))
}

fn refusal_message(refusal: &RefusalCount) -> wire::RefusalCount {
    wire::RefusalCount {
        reason: cut(&refusal.reason),
        nodes: refusal.nodes,
        examples: cut_all(&refusal.examples),
    }
}

fn nearest_message(nearest: &NearestMiss) -> wire::NearestMiss {
    wire::NearestMiss {
        node_id: nearest.node.to_string(),
        node_name: nearest.name.to_string(),
        reasons: cut_all(&nearest.reasons),
        remedy: cut(&nearest.remedy),
    }
}

fn choice_message(choice: &Choice) -> wire::Choice {
    let term = |term: &ScoreTerm| wire::ScoreTerm { name: cut(&term.name), value: term.value };
    wire::Choice {
        node_id: choice.node.to_string(),
        node_name: choice.name.to_string(),
        score: choice.score,
        terms: choice.terms.iter().take(ENTRIES_MAX).map(term).collect(),
        reason: cut(&choice.reason),
    }
}

fn choice(message: wire::Choice) -> Result<Choice, MessageError> {
    Ok(Choice {
        node: node_id("chosen", &message.node_id)?,
        name: name("chosen.node_name", &message.node_name)?,
        score: message.score,
        terms: each("chosen.terms", message.terms, |_, term| {
            Ok(ScoreTerm { name: term.name, value: term.value })
        })?,
        reason: message.reason,
    })
}

fn cut_all(texts: &[String]) -> Vec<String> {
    texts.iter().take(ENTRIES_MAX).map(|text| cut(text)).collect()
}

fn cut(text: &str) -> String {
    if text.len() <= TEXT_LEN_MAX {
        return text.to_owned();
    }
    let end = (0..=TEXT_LEN_MAX).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}…", &text[..end])
}
