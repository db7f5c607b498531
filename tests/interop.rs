//! A quick part of `make interop`: STUN clients that others wrote ask our server before one NAT of each sort.

use anyhow::Result;
use ntcp_lab::check::interop;
use ntcp_lab::lab::say;
use ntcp_lab::product::Product;
use ntcp_lab::tools;

const KINDS: [&str; 7] = [
    "public",
    "firewall",
    "full-cone",
    "address-restricted",
    "port-restricted",
    "address-step1",
    "session-random",
];

#[test]
fn other_peoples_stun_clients_judge_nats_rightly_when_they_ask_our_server() -> Result<()> {
    if let Some(problem) = tools::missing() {
        say(&format!("NOT RUN: interop: {problem}"));
        return Ok(());
    }
    let product = Product::new(env!("CARGO_BIN_EXE_ntcp-overlay"))?;
    interop::run(&product, &KINDS.map(str::to_owned))
}
