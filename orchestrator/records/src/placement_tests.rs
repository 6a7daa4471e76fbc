//! Records with everything that placement knows of: they survive, and what was stored before still reads.

use std::time::Duration;

use drover_cluster_state::{
    Affinity, Capacity, Choice, Constraints, CpuBaseline, Domain, Drain, Explanation, HostFacts, Incarnation,
    LabelRule, LabelTest, Moves, MovesPurpose, Name, NearestMiss, Node, NodeFence, NodeSettings, NumaNode,
    NumaPolicy, Operation, OperationKind, Overcommit, Peer, PlannedMove, PolicyRecord, Preemption, Project,
    ProjectLimits, Ratio, RebalanceMode, Record, RefusalCount, Relation, ScoreTerm, Settings, Spread,
    Strength, Subject, Taint, TaintEffect, Toleration, WallTime,
};
use drover_ids::{NodeId, OperationId, VmId};
use drover_units::{Bytes, VcpuCount};

use crate::{StoredKey, Value, decode, encode, key_text};

fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

const A: NodeId = NodeId::from_u128(0xa);
const B: NodeId = NodeId::from_u128(0xb);
const VM: VmId = VmId::from_u128(1);
const AT: WallTime = WallTime::from_unix_millis(1_700_000_000_123);

pub(crate) fn constraints() -> Constraints {
    let rule = |test, strength| LabelRule { key: name("disk"), test, strength };
    Constraints {
        groups: [name("web")].into(),
        affinity: vec![
            Affinity {
                relation: Relation::Apart,
                peer: Peer::Group(name("web")),
                domain: Domain::Rack,
                strength: Strength::Required,
            },
            Affinity {
                relation: Relation::Together,
                peer: Peer::Vm(VM),
                domain: Domain::Host,
                strength: Strength::Preferred(50),
            },
        ],
        spread: vec![Spread {
            group: name("web"),
            domain: Domain::Zone,
            max_skew: 2,
            strength: Strength::Required,
        }],
        labels: vec![
            rule(LabelTest::In([name("nvme"), name("ssd")].into()), Strength::Required),
            rule(LabelTest::NotIn([name("tape")].into()), Strength::Required),
            rule(LabelTest::Exists, Strength::Preferred(1)),
            rule(LabelTest::Absent, Strength::Preferred(100)),
        ],
        tolerations: vec![Toleration { key: name("gpu"), value: Some(name("a100")) }],
        numa: NumaPolicy::Single,
        pinned: true,
        hugepages: Some(Bytes::mib(2)),
        cpu_baseline: CpuBaseline::V3,
        networks: [name("blue")].into(),
        project: Some(name("team")),
        preemption: Preemption::LowerPriority,
        lifetime: Some(Duration::from_secs(3600)),
        set: Some(name("set")),
    }
}

fn node() -> Node {
    let facts = HostFacts {
        labels: [(name("rack"), name("r1"))].into(),
        taints: [Taint { key: name("gpu"), value: None, effect: TaintEffect::Avoid }].into(),
        cores: 2,
        threads: 4,
        numa: vec![NumaNode {
            id: 0,
            cpus: VcpuCount::new(4),
            memory: Bytes::gib(4),
            hugepages: [(Bytes::mib(2), Bytes::gib(1))].into(),
        }],
        cpu_baseline: CpuBaseline::V3,
        networks: [name("blue")].into(),
        overcommit: Overcommit { vcpus: Ratio::from_percent(250).unwrap(), memory: Ratio::ONE },
        reserved: Capacity { vcpus: VcpuCount::new(1), memory: Bytes::mib(512) },
    };
    let settings = NodeSettings {
        labels: [(name("rack"), None), (name("zone"), Some(name("z1")))].into(),
        taints: [Taint { key: name("old"), value: Some(name("yes")), effect: TaintEffect::Refuse }].into(),
        vcpu_overcommit: None,
        memory_overcommit: Ratio::from_percent(120),
        reserved: Some(Capacity::default()),
        cordoned: true,
        drain: Some(Drain { operation: OperationId::from_u128(0xd) }),
    };
    Node {
        librbd: String::new(),
        id: A,
        name: name("n1"),
        address: "127.0.0.1:7401".to_owned(),
        capacity: Capacity { vcpus: VcpuCount::new(4), memory: Bytes::gib(4) },
        pools: [name("default")].into(),
        incarnation: Incarnation("first".to_owned()),
        version: "0.1.0".to_owned(),
        fence: NodeFence::Clear,
        assignments: 6,
        facts,
        settings,
    }
}

fn explanation() -> Explanation {
    Explanation {
        policy: "pack".to_owned(),
        considered: 3,
        feasible: 1,
        refusals: vec![RefusalCount {
            reason: "too little memory".to_owned(),
            nodes: 2,
            examples: vec!["n1".to_owned()],
        }],
        nearest: vec![NearestMiss {
            node: A,
            name: name("n1"),
            reasons: vec!["needs more".to_owned()],
            remedy: "free some".to_owned(),
        }],
        chosen: Some(Choice {
            node: B,
            name: name("n2"),
            score: -7,
            terms: vec![ScoreTerm { name: "pack".to_owned(), value: -7 }],
            reason: "it is the tightest".to_owned(),
        }),
        notes: vec!["note".to_owned()],
    }
}

fn operations() -> Vec<Record> {
    let moves = |purpose, planned| OperationKind::Moves(Moves { purpose, parallel: 2, total: 3, planned });
    let kinds = [
        (OperationKind::VmSetCreate { count: 3 }, Subject::VmSet(name("set"))),
        (moves(MovesPurpose::DrainNode, vec![]), Subject::Node(A)),
        (moves(MovesPurpose::DrainRack, vec![]), Subject::Rack(name("r1"))),
        (moves(MovesPurpose::Rebalance, vec![PlannedMove { vm: VM, from: A, to: B }]), Subject::Cluster),
        (moves(MovesPurpose::Defragment, vec![]), Subject::Cluster),
    ];
    let record = |(number, (kind, subject)): (usize, (OperationKind, Subject))| {
        let id = OperationId::from_u128(0x0e00 + number as u128);
        let mut operation = Operation::new(id, kind, subject, name("subject"), AT);
        operation.parent = Some(OperationId::from_u128(0xd));
        operation.explanation = Some(Box::new(explanation()));
        Record::Operation(operation)
    };
    kinds.into_iter().enumerate().map(record).collect()
}

fn samples() -> Vec<Record> {
    let mut records = vec![
        Record::Node(node()),
        Record::Policy(PolicyRecord {
            name: name("mine"),
            base: name("custom"),
            weights: [(name("cpu"), 500)].into(),
            seed: 7,
        }),
        Record::Project(Project {
            name: name("team"),
            limits: ProjectLimits { vms: Some(3), vcpus: None, memory: Some(Bytes::gib(8)) },
            policy: Some(name("mine")),
            admissions: 4,
            created_at: AT,
        }),
        Record::Settings(Settings {
            policy: name("mine"),
            rebalance: RebalanceMode::Automatic,
            failures_to_survive: 1,
        }),
    ];
    records.extend(operations());
    let vms = crate::tests::samples().into_iter().filter_map(|record| match record {
        Record::Vm(mut vm) => {
            vm.spec.constraints = constraints();
            Some(Record::Vm(vm))
        }
        _ => None,
    });
    records.extend(vms);
    records
}

/// As in `records_of_format_1_are_read`: what is in a store today must be readable by every later version.
#[test]
fn placement_records_are_read() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/src/golden-placement.txt");
    let hex = |bytes: Vec<u8>| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let line = |record: &Record| format!("{} {}", key_text(&record.key()), hex(encode(record)));
    let today: Vec<String> = samples().iter().map(line).collect();
    if std::env::var_os("UPDATE_EXPECT").is_some() {
        std::fs::write(path, today.join("\n") + "\n").unwrap();
    }
    let golden = std::fs::read_to_string(path).unwrap();
    assert_eq!(golden.lines().collect::<Vec<_>>(), today);
    for (line, record) in golden.lines().zip(samples()) {
        let (key, hex) = line.split_once(' ').unwrap();
        let bytes: Vec<u8> =
            (0..hex.len()).step_by(2).map(|at| u8::from_str_radix(&hex[at..at + 2], 16).unwrap()).collect();
        assert_eq!(decode(&key.parse().unwrap(), &bytes), Ok(Value::Record(record)));
    }
}

#[test]
fn a_rule_that_only_a_newer_version_knows_is_an_error_that_names_its_field() {
    let mut vm = samples().into_iter().find(|record| matches!(record, Record::Vm(_))).unwrap();
    let key = StoredKey::Record(vm.key());
    if let Record::Vm(vm) = &mut vm {
        vm.spec.constraints =
            Constraints { affinity: vec![constraints().affinity[0].clone()], ..Constraints::default() };
    }
    let mut bytes = encode(&vm);
    // The relation (field 1, APART = 2) of the only rule becomes 9.
    let at = bytes.windows(4).position(|four| four == [0x08, 0x02, 0x1a, 0x03]).expect("the rule is there");
    bytes[at + 1] = 9;
    let error = decode(&key, &bytes).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(source.contains("affinity[0].relation"), "{source}");
}
