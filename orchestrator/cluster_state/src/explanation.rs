//! Why a VM runs where it does, or nowhere: what placement says, in words, as it is shown and stored.

use std::fmt;

use drover_ids::NodeId;

use crate::Name;

/// Hosts refused for one reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RefusalCount {
    /// The reason, without what differs from host to host.
    pub reason: String,
    /// How many hosts it kept away, among other reasons or alone.
    pub nodes: u32,
    /// Names of a few of them.
    pub examples: Vec<String>,
}

/// The host that came closest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NearestMiss {
    /// The host.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// Everything against it, with numbers.
    pub reasons: Vec<String>,
    /// What would make the VM fit there.
    pub remedy: String,
}

/// One term of a policy, for one host.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ScoreTerm {
    /// The policy's name for it.
    pub name: String,
    /// What it came to, in thousandths; larger is better.
    pub value: i64,
}

/// The host that was chosen.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The host.
    pub node: NodeId,
    /// Its name.
    pub name: Name,
    /// The sum of the terms.
    pub score: i64,
    /// What it is made of.
    pub terms: Vec<ScoreTerm>,
    /// Why it won, in words.
    pub reason: String,
}

/// What placement has to say about one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Explanation {
    /// The policy that decided.
    pub policy: String,
    /// Hosts there are.
    pub considered: u32,
    /// Hosts that would do.
    pub feasible: u32,
    /// Why the others would not, most frequent first.
    pub refusals: Vec<RefusalCount>,
    /// Closest first; empty where there was room.
    pub nearest: Vec<NearestMiss>,
    /// Where to. `None`: nowhere.
    pub chosen: Option<Choice>,
    /// What else there is to know: VMs that would have to give way, where the VM is now.
    pub notes: Vec<String>,
}

impl fmt::Display for Explanation {
    /// One line, for an operation's reason.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(chosen) = &self.chosen {
            return write!(f, "node {} of {} that would do: {}", chosen.name, self.feasible, chosen.reason);
        }
        if self.considered == 0 {
            return f.write_str("no node has registered");
        }
        write!(f, "0 of {} node(s) can take it", self.considered)?;
        for (index, refusal) in self.refusals.iter().enumerate() {
            let separator = if index == 0 { ": " } else { ", " };
            write!(f, "{separator}{} {}", refusal.nodes, refusal.reason)?;
        }
        if let Some(nearest) = self.nearest.first() {
            write!(f, "; nearest is {}: {}", nearest.name, nearest.reasons.join(", "))?;
            if !nearest.remedy.is_empty() {
                write!(f, "; {}", nearest.remedy)?;
            }
        }
        self.notes.iter().try_for_each(|note| write!(f, "; {note}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_is_said_in_one_line() {
        let refusal = |reason: &str, nodes| RefusalCount {
            reason: reason.to_owned(),
            nodes,
            ..RefusalCount::default()
        };
        let explanation = Explanation {
            considered: 3,
            refusals: vec![refusal("too little memory", 2), refusal("not ready", 1)],
            nearest: vec![NearestMiss {
                node: NodeId::from_u128(1),
                name: Name::new("n1").unwrap(),
                reasons: vec!["needs 2 GiB memory, 1 GiB of 4 GiB free".to_owned()],
                remedy: "free 1 GiB of memory there".to_owned(),
            }],
            ..Explanation::default()
        };
        assert_eq!(
            explanation.to_string(),
            "0 of 3 node(s) can take it: 2 too little memory, 1 not ready; nearest is n1: \
             needs 2 GiB memory, 1 GiB of 4 GiB free; free 1 GiB of memory there"
        );
        assert_eq!(Explanation::default().to_string(), "no node has registered");
    }
}
