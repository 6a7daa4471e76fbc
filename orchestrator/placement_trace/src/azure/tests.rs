use super::*;
use crate::{Action, generate};

const TYPES: &str = "id,vmTypeId,machineId,core,memory,hdd,ssd,nic\n\
    0,3,0,0.0208333333333,0.015625,,0.01,0.02\n1,3,1,0.03125,0.0078125,0,0.01,0.02\n2,4,1,1,1,0,1,1\n";
const VMS: &str = "vmId,tenantId,vmTypeId,priority,starttime,endtime\n\
    10,1,3,1,0.5,2.5\n11,1,3,0,-7.25,\n12,2,4,0,0.25,0.25\n";

fn tables() -> Tables {
    read_csv(VMS.as_bytes(), TYPES.as_bytes()).unwrap()
}

fn machine(cores: u32, gib: u64) -> Flavour {
    Flavour { vcpus: VcpuCount::new(cores), memory: Bytes::gib(gib) }
}

#[test]
fn fractions_become_whole_cpus_of_the_chosen_machine() {
    let (trace, left_out) = tables().on_machine(MachineId(0), machine(48, 256)).unwrap();
    assert_eq!(trace.flavours(), [machine(1, 4)]);
    assert_eq!((trace.creations(), left_out), (2, 1));
    let (trace, left_out) = tables().on_machine(MachineId(1), machine(64, 512)).unwrap();
    assert_eq!(trace.flavours(), [machine(2, 4), machine(64, 512)]);
    assert_eq!((trace.creations(), left_out), (3, 0));
}

#[test]
fn vms_from_before_the_collection_are_there_at_its_beginning() {
    let (trace, _) = tables().on_machine(MachineId(1), machine(64, 512)).unwrap();
    let order: Vec<_> =
        trace.events().iter().map(|event| (event.at.days(), event.action == Action::Delete)).collect();
    let day = 1.0 / MS_IN_DAY;
    assert_eq!(order, [(0.0, false), (0.25, false), (0.25 + day, true), (0.5, false), (2.5, true)]);
    let Action::Create { priority, lifetime, .. } = trace.events()[0].action else { panic!() };
    assert_eq!((priority, lifetime), (Priority::High, None));
}

#[test]
fn the_machine_that_takes_most_requests_is_found() {
    assert_eq!(tables().commonest_machine(), Some(MachineId(1)));
    assert_eq!(Tables::default().commonest_machine(), None);
}

fn check(vms: &str, types: &str, expect: &str) {
    assert_eq!(read_csv(vms.as_bytes(), types.as_bytes()).unwrap_err().to_string(), expect);
}

#[test]
fn what_cannot_be_meant_is_refused_with_its_line() {
    let vm = |row: &str| format!("{VMS}{row}\n");
    check(&vm("13,1,3,2,0,1"), TYPES, "line 5 of the trace: '2' is no valid priority: 0 for high, 1 for low");
    check(&vm("13,1,3,0,2,1"), TYPES, "line 5 of the trace: '1' is no valid endtime: not before starttime");
    check(&vm("13,1,3,0,,1"), TYPES, "line 5 of the trace: no value for 'starttime'");
    let days = "fractional days since the collection began";
    check(&vm("13,1,3,0,inf,1"), TYPES, &format!("line 5 of the trace: 'inf' is no valid starttime: {days}"));
    let types = format!("{TYPES}9,5,0,1.5,0,0,0,0\n");
    check(VMS, &types, "line 5 of the trace: '1.5' is no valid core: a fraction of a machine, 0 to 1");
    check(
        "vmId\n",
        TYPES,
        &format!(
            "line 1 of the trace: no column 'tenantId'; the titles should be: {}",
            VMS.lines().next().unwrap()
        ),
    );
}

#[test]
fn a_machine_that_offers_nothing_is_an_error() {
    let error = tables().on_machine(MachineId(9), machine(64, 512)).unwrap_err();
    assert_eq!(error.to_string(), "the trace: VM type 3 is not offered on machine 9");
}

#[test]
fn csv_exports_say_the_same_when_read_again() {
    let tables = generate::azure(&generate::AzureShape { vms: 500, ..Default::default() }, generate::Seed(7));
    let (mut vm, mut vm_type) = (Vec::new(), Vec::new());
    write_csv(&tables, &mut vm, &mut vm_type).unwrap();
    assert_eq!(read_csv(&vm[..], &vm_type[..]).unwrap(), tables);
}

#[cfg(feature = "sqlite")]
mod database {
    use super::*;

    #[test]
    fn a_published_file_says_the_same_when_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.sqlite");
        let tables =
            generate::azure(&generate::AzureShape { vms: 500, ..Default::default() }, generate::Seed(7));
        write_sqlite(&tables, &path).unwrap();
        assert_eq!(read_sqlite(&path).unwrap(), tables);
    }

    fn check(script: &str, expect: &str) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.sqlite");
        let database = rusqlite::Connection::open(&path).unwrap();
        database.execute_batch(script).unwrap();
        drop(database);
        let error = read_sqlite(&path).unwrap_err();
        assert!(error.to_string().starts_with(expect), "{error}: expected {expect}");
    }

    #[test]
    fn a_database_that_is_no_trace_is_refused() {
        let type_table = "CREATE TABLE vmType (vmTypeId, machineId, core, memory, hdd, ssd, nic);";
        let vm_table = "CREATE TABLE vm (vmId, tenantId, vmTypeId, priority, starttime, endtime);";
        check("CREATE TABLE other (x);", "cannot read the trace's database: reading the table vmType");
        check(type_table, "cannot read the trace's database: reading the table vm");
        let row = |row: &str| format!("{type_table}{vm_table} INSERT INTO vm VALUES ({row});");
        check(&row("1,1,1,3,0,1"), "line 1 of the trace: '3' is no valid priority");
        check(&row("1,1,1,0,NULL,1"), "line 1 of the trace: 'NULL' is no valid starttime");
        check(
            &row("1,1,1,0,'noon',1"),
            "line 1 of the trace: 'Text' is no valid starttime: the schema's type",
        );
        check(&row("1,1,1,0,5,1"), "line 1 of the trace: '1' is no valid endtime: not before starttime");
        let types = format!("{vm_table}{type_table} INSERT INTO vmType VALUES (1,1,2.5,0,0,0,0);");
        check(&types, "line 1 of the trace: '2.5' is no valid core");
    }

    #[test]
    fn a_file_that_is_no_database_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("trace.sqlite");
        std::fs::write(&path, "vmid,cpu,memory,time,type\n".repeat(100)).unwrap();
        let error = read_sqlite(&path).unwrap_err();
        assert!(error.to_string().starts_with("cannot read the trace's database"), "{error}");
    }
}
