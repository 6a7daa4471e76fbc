//! Makes the programs of system calls from the lists in `filters/`: a process that starts has nothing to read and to compile.
#![forbid(unsafe_code)]

#[path = "src/lists.rs"]
mod lists;
#[path = "src/needs.rs"]
#[expect(dead_code, reason = "the library finds the programs again")]
mod needs;
#[path = "src/program.rs"]
mod program;

use std::{env, error::Error, fmt::Write as _, fs, path::Path};

use drover_thread_role::Role;

use crate::{lists::Allowed, needs::Needs, program::compile};

fn main() -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed=filters");
    println!("cargo::rerun-if-changed=src");
    let mut text = String::new();
    let mut table = |name: &str, allowed: &dyn Fn(Needs) -> Result<Allowed, lists::ListError>| {
        write!(text, "pub(super) static {name}: [&[sock_filter]; {}] = [", Needs::ALL.len())?;
        for needs in Needs::ALL {
            text.push_str("&[");
            for (code, jt, jf, k) in compile(&allowed(needs)?) {
                write!(text, "sock_filter {{ code: {code}, jt: {jt}, jf: {jf}, k: {k} }},")?;
            }
            text.push_str("],");
        }
        text.push_str("];\n");
        Ok::<_, Box<dyn Error>>(())
    };
    table("PROCESS", &Allowed::of_process)?;
    for role in Role::ALL {
        table(&role.name().to_uppercase(), &|needs| Allowed::of(role, needs))?;
    }
    let path = Path::new(&env::var("OUT_DIR")?).join("programs.rs");
    Ok(fs::write(path, text)?)
}
