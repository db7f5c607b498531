//! `make interop`: the product's STUN server, asked by clients that others wrote, before NATs of every kind.

use std::any::Any;
use std::thread;

use anyhow::Result;
use anyhow::bail;

use super::AT_ONCE;
use super::Testimony;
use super::Transport;
use super::clients;
use super::clients::Client;
use super::expected;
use super::hairpin_and_lifetime;
use super::installed;
use super::named;
use super::print;
use super::scene;
use crate::Host;
use crate::Lab;
use crate::Site;
use crate::classify::Depends;
use crate::classify::Vantage;
use crate::nat::kinds::Kind;
use crate::product::Product;
use crate::product::write_config;

/// Whose server is asked.
#[derive(Clone, Copy)]
pub(super) enum Asked<'a> {
    /// coturn's.
    Coturn,
    /// Ours.
    Ours(&'a Product),
}

impl Asked<'_> {
    /// Starts it at both addresses; it runs as long as what this returns lives.
    pub(super) fn serve(self, server: &Host, vantage: &Vantage) -> Result<Box<dyn Any>> {
        match self {
            Self::Coturn => Ok(Box::new(clients::stun_server(server, vantage)?)),
            Self::Ours(product) => {
                let [first, second] = vantage.addresses();
                let config =
                    format!("[stun]\nenabled = true\nlisten = [\"{first}:3478\", \"{second}:3478\"]\n");
                let config = write_config(server, &config)?;
                Ok(Box::new(product.daemon(&server.ns, &["serve", "--config", &config])?))
            }
        }
    }
}

/// Has every client that is installed judge each NAT with one of these names, or all of them, by asking the product's server
/// at two addresses; prints what they said, and fails if anybody is wrong.
pub fn run(product: &Product, names: &[String]) -> Result<()> {
    let (kinds, clients) = (named(names)?, installed());
    if clients.is_empty() {
        println!("NOT RUN: nobody is there to ask our STUN server");
        return Ok(());
    }
    println!(
        "What other people's STUN clients say of each NAT when they ask our server. `=` is right, `!` is wrong."
    );
    let (mut right, mut wrong) = (0, 0);
    for kinds in kinds.chunks(AT_ONCE) {
        let reports = thread::scope(|scope| {
            let examined: Vec<_> =
                kinds.iter().map(|kind| scope.spawn(|| examine(product, kind, &clients))).collect();
            examined.into_iter().map(thread::ScopedJoinHandle::join).collect::<Vec<_>>()
        });
        for (kind, report) in kinds.iter().zip(reports) {
            println!("\n{}", kind.name);
            let report = report.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
            let contradictions = print(&report);
            (right, wrong) = (right + report.len() - contradictions, wrong + contradictions);
        }
    }
    println!("\nhairpin, and how long an idle mapping lives");
    let report = hairpin_and_lifetime(&clients, Asked::Ours(product))?;
    let contradictions = print(&report);
    (right, wrong) = (right + report.len() - contradictions, wrong + contradictions);
    if kinds.iter().any(|kind| is_misled(Client::Natdiscovery, kind)) {
        println!(
            "\nturnutils_natdiscovery calls an address-dependent mapping address and port dependent: for its third question it \
             takes OTHER-ADDRESS from its second answer, which names the first address again (RFC 5780 7.4), and not from its \
             first (4.3). Its own server does not name it."
        );
    }
    let (kinds, clients) = (kinds.len(), clients.len());
    println!("\n{kinds} kinds of NAT, {clients} clients: {right} answers right, {wrong} wrong");
    if wrong > 0 {
        bail!("{wrong} answers are wrong, marked with `!` above");
    }
    Ok(())
}

/// Whether this client asks the wrong endpoint in its third question about this NAT, and so draws the wrong conclusion from
/// right answers.
fn is_misled(client: Client, kind: &Kind) -> bool {
    let depends = expected(kind.nat, Transport::Udp).depends;
    client == Client::Natdiscovery && depends == Depends::Address
}

fn examine(product: &Product, kind: &Kind, clients: &[Client]) -> Result<Vec<Testimony>> {
    let lab = Lab::new()?;
    let ([alice, _], vantage, server) = scene(&lab, Site::new(kind.nat))?;
    let _serving = Asked::Ours(product).serve(&server, &vantage)?;
    let testify = |client: &Client| {
        let (said, wanted) = (client.ask(&alice, &vantage)?, client.would_say(kind.nat));
        let wanted = if is_misled(*client, kind) {
            wanted.replace("Address Dependent Mapping", "Address and Port Dependent Mapping")
        } else {
            wanted
        };
        Ok(Testimony { who: client.program(), said, wanted })
    };
    clients.iter().map(testify).collect()
}
