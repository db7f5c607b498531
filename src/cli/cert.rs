//! `cert`: certificates by hand.

use clap::Args;

use crate::config::exit::Exit;

/// To be filled in.
#[derive(Args, Debug)]
pub(super) struct CertArgs {}

pub(super) fn run(args: CertArgs) -> anyhow::Result<Exit> {
    let CertArgs {} = args;
    anyhow::bail!("not built yet")
}
