//! Situations nobody thought of: random work and random faults in bad weather, then repair, then convergence. The world
//! checks the invariants after every step; a failure prints the seed.

use std::collections::BTreeMap;

use drover_cluster_state::{Desired, NodeState, Right, RunState};

use crate::world::{Rng, Weather, World};

const SEEDS: u64 = 100;
const FAULTY_MS: u64 = 60_000;
const REPAIRED_MS: u64 = 120_000;

#[test]
fn whatever_happens_nothing_runs_twice_and_everything_converges() {
    let first = std::env::var("DROVER_SIM_SEED").ok().and_then(|seed| seed.parse().ok());
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    let mut resumed = 0;
    let many = std::env::var("DROVER_SIM_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(SEEDS);
    let seeds = first.map_or(0..many, |seed: u64| seed..seed + 1);
    for seed in seeds {
        match std::panic::catch_unwind(|| simulate(seed)) {
            Ok(world) => {
                resumed += world.ensured.iter().filter(|(_, resume)| *resume).count();
                for event in &world.events {
                    let kind = event.split_whitespace().nth(1).unwrap_or_default().to_owned();
                    *seen.entry(kind).or_default() += 1;
                }
            }
            Err(panic) => {
                eprintln!("seed {seed}: run again with DROVER_SIM_SEED={seed}");
                std::panic::resume_unwind(panic);
            }
        }
    }
    println!("{seen:?}");
    // A simulation in which nothing happens proves nothing.
    for kind in [
        "node.fenced",
        "vm.restarted",
        "vm.stopped",
        "vm.deleted",
        "migration.committed",
        "migration.aborted",
        "migration.reverted",
    ] {
        assert!(first.is_some() || seen.contains_key(kind), "no {kind} in {SEEDS} seeds");
    }
    assert!(first.is_some() || resumed > 0, "no VM was resumed in {SEEDS} seeds");
}

fn simulate(seed: u64) -> World {
    let mut world = World::new(seed, &[6, 6, 6, 6]);
    let mut fate = Rng::new(seed ^ 0x5eed);
    for n in 0..8 {
        world.volume(&format!("d{n}"));
    }
    world.weather = Weather::bad();
    let end = world.now + FAULTY_MS;
    while world.now < end {
        work(&mut world, &mut fate);
        disturb(&mut world, &mut fate);
        let pause = fate.range(20, 1_500);
        world.run(pause);
    }
    repair(&mut world);
    world.run(REPAIRED_MS);
    assert_converged(&mut world);
    world
}

fn work(world: &mut World, fate: &mut Rng) {
    let n = fate.range(0, 6);
    let vm = format!("vm{n}");
    // Requests are refused as often as not; what matters is what comes of those that are not.
    let _ = match fate.range(0, 14) {
        0..=3 => world.create(&vm, |request| {
            request.vcpus = 1 + (n % 2) as u32;
            if n != 5 {
                request.volumes = vec![format!("d{n}")];
            }
            if n < 2 {
                request.anti_affinity_group = "pair".to_owned();
            }
        }),
        4 => world.start(&vm),
        5 => world.stop(&vm),
        6 => world.delete(&vm),
        7 => {
            let running: Vec<_> =
                world.store.operations.values().filter(|o| o.is_running()).map(|o| o.id).collect();
            match fate.pick(&running) {
                Some(operation) if fate.chance(300) => world.cancel(operation),
                _ => return,
            }
        }
        _ => {
            let target = ["", "n1", "n2", "n3", "n4"][fate.range(0, 5) as usize];
            world.migrate(&vm, target)
        }
    };
}

fn disturb(world: &mut World, fate: &mut Rng) {
    let name = format!("n{}", fate.range(1, 5));
    match fate.range(0, 40) {
        0 => world.kill_node(&name),
        1..=3 if !world.host(&name).up => world.boot_node(&name),
        4 => world.host(&name).linked = false,
        5..=8 => world.host(&name).linked = true,
        9 => world.host(&name).agent = false,
        10..=12 => {
            let host = world.host(&name);
            let (up, node) = (host.up, host.id);
            if up {
                world.restart_agent(node);
            }
        }
        13 | 14 => world.kill_planner(),
        15..=19 if world.planner.is_none() => world.start_planner(),
        fault @ 20..=23 => {
            if let Some(vm) = some_vm_on(world, fate, &name) {
                if fault == 23 { world.shut_down_guest(&name, &vm) } else { world.kill_process(&name, &vm) }
            }
        }
        24 | 25 => {
            if let Some(vm) = some_vm_on(world, fate, &name) {
                let id = world.vm(&vm).id;
                if world.host(&name).processes[&id].report.state == RunState::Running {
                    world.suspend(&name, &vm);
                }
            }
        }
        _ => {}
    }
}

fn some_vm_on(world: &mut World, fate: &mut Rng, node: &str) -> Option<String> {
    let vms: Vec<_> = world.host(node).processes.keys().copied().collect();
    let vm = fate.pick(&vms)?;
    world.store.vms.get(&vm).map(|vm| vm.spec.name.to_string())
}

fn repair(world: &mut World) {
    world.weather = Weather::good();
    for node in world.hosts.keys().copied().collect::<Vec<_>>() {
        let host = world.hosts.get_mut(&node).unwrap();
        host.linked = true;
        let (up, agent, name) = (host.up, host.agent, host.name.clone());
        if !up {
            world.boot_node(&name);
        } else if !agent {
            world.restart_agent(node);
        }
    }
    if world.planner.is_none() {
        world.start_planner();
    }
}

fn assert_converged(world: &mut World) {
    let why = world.describe();
    let state = world.planner.as_ref().unwrap().state();
    assert!(world.store.operations.values().all(|o| !o.is_running()), "an operation does not end\n{why}");
    for node in world.hosts.keys() {
        assert_eq!(state.node_state(*node), Some(NodeState::Ready), "{why}");
    }
    for vm in world.store.vms.values() {
        let runs = world.runs_on(vm.spec.name.as_str());
        match vm.desired {
            Desired::Running => {
                assert!(runs.is_some(), "{} does not run\n{why}", vm.spec.name);
                assert_eq!(runs, world.owner(vm.spec.name.as_str()), "{why}");
            }
            Desired::Stopped => {
                assert_eq!(runs, None, "{} runs\n{why}", vm.spec.name);
                assert_eq!(vm.ownership.right(), Right::Unowned, "{why}");
            }
            Desired::Deleted => panic!("{} is not gone\n{why}", vm.spec.name),
        }
        assert_eq!(state.vms.get(&vm.id), Some(vm), "the planner's view is not the store's\n{why}");
    }
    for host in world.hosts.values() {
        for vm in host.processes.keys() {
            let owner = world.store.vms.get(vm).and_then(|vm| vm.ownership.node());
            assert_eq!(owner, Some(host.id), "a process is left over on {}\n{why}", host.name);
        }
    }
}
