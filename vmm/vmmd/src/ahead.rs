//! Calls that came before there was anybody to take them.
//!
//! Whoever starts this process mostly knows what its VM is to be. With `--calls-ahead` standard input is a socket on which that
//! is handed over (drover-handover): files, and with them Create and Start, which are carried out before the gRPC server is
//! there. The same calls, made later, find that they have been carried out, or hear once why they have not.

use std::{
    io::{self, Read as _},
    os::{fd::AsFd as _, unix::net::UnixStream},
};

use anyhow::Context as _;
use drover_handover::{CREATE, Incoming, START, Table};
use drover_ids::OperationId;
use drover_lifecycle::Verb;
use drover_wire::vm::v1 as wire;
use prost::Message;
use tracing::warn;

use crate::{
    cli::Arguments,
    order::{InvalidField, Order},
    refused::Refused,
};

/// Longest call, bytes: a description of a VM with all the devices that it can have is a tenth of it.
const CALL_BYTES_MAX: u64 = 1 << 20;

/// Puts what comes on standard input into `table`, if that is what the command line says, and returns the calls among it, in the
/// order in which they are to be carried out.
pub(crate) fn take(arguments: &Arguments, table: &Table) -> anyhow::Result<Vec<Order>> {
    if !arguments.calls_ahead {
        return Ok(Vec::new());
    }
    take_files(table).context("--calls-ahead: cannot take what comes on standard input")?;
    let create = call::<wire::CreateRequest>(table, CREATE).context("--calls-ahead")?;
    let start = call::<wire::StartRequest>(table, START).context("--calls-ahead")?;
    Ok(create.into_iter().chain(start).collect())
}

fn take_files(table: &Table) -> io::Result<()> {
    let socket = io::stdin().as_fd().try_clone_to_owned()?;
    Incoming::new(UnixStream::from(socket))?.take_ahead(table)
}

fn call<M: Message + Default>(table: &Table, name: &str) -> anyhow::Result<Option<Order>>
where
    Order: TryFrom<M, Error = InvalidField>,
{
    let Some(file) = table.take(name) else { return Ok(None) };
    let mut bytes = Vec::new();
    file.take(CALL_BYTES_MAX).read_to_end(&mut bytes).with_context(|| format!("{name}: cannot be read"))?;
    let message = M::decode(bytes.as_slice()).with_context(|| format!("{name} is no such call"))?;
    // Whoever sent it makes it again, and is told then which field is wrong.
    Ok(Order::try_from(message)
        .map_err(|error| warn!(%error, name, "a call that came ahead is left to its caller"))
        .ok())
}

/// A call that came ahead and was refused, until its caller makes it.
#[derive(Debug)]
pub(crate) struct RefusedAhead {
    operation: OperationId,
    verb: Verb,
    why: Refused,
}

impl RefusedAhead {
    pub(crate) fn new(order: &Order, why: Refused) -> Self {
        Self { operation: order.command.operation, verb: order.task.request().verb(), why }
    }

    /// Why this order has been refused, if it is the one.
    pub(crate) fn answer(kept: &mut Option<Self>, order: &Order) -> Option<Refused> {
        let is_it = |ahead: &mut Self| {
            (ahead.operation, ahead.verb) == (order.command.operation, order.task.request().verb())
        };
        kept.take_if(is_it).map(|ahead| ahead.why)
    }
}
