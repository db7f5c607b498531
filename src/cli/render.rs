//! Text for people, as pure functions of what the daemon said.

use std::fmt::Write as _;

use crate::base::time::UnixTime;
use crate::control::api::Broker;
use crate::control::api::Dropped;
use crate::control::api::Forwarded;
use crate::control::api::Gateway;
use crate::control::api::Kind;
use crate::control::api::Path;
use crate::control::api::Peer;
use crate::control::api::Pong;
use crate::control::api::State;
use crate::control::api::Status;
use crate::control::api::Treatment;
use crate::control::api::Tried;

/// How much, and in which dress.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Style {
    /// Colour is welcome.
    pub colour: bool,
    /// Everything that is known.
    pub verbose: bool,
}

/// A colour of the terminal's own palette.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Paint {
    Plain,
    Bold,
    Good,
    Fair,
    Faint,
}

/// What `status` prints.
#[must_use]
pub fn status(status: &Status, now: UnixTime, style: Style) -> String {
    let mut out = String::new();
    header(&mut out, status);
    roles(&mut out, status);
    for broker in &status.brokers {
        line(&mut out, &broker_line(broker));
    }
    if let Some(proxy) = &status.proxy {
        line(&mut out, &format!("broker and relays through the proxy {}", clean(proxy)));
    }
    if let Some(gateway) = &status.gateway {
        router(&mut out, gateway, style);
    }
    if style.verbose {
        details(&mut out, status, now);
    }
    if status.name.is_some() {
        line(&mut out, "");
        if status.peers.is_empty() {
            line(&mut out, nobody(status));
        } else {
            out += &peer_table(&status.peers, now, style);
        }
    }
    out
}

/// What `peers` prints.
#[must_use]
pub fn peers(peers: &[Peer], now: UnixTime) -> String {
    if peers.is_empty() {
        return "no other members yet: `ntcp-overlay invite` prints a token for one\n".to_owned();
    }
    let mut table = Table::new(&["NAME", "ADDRESS", "STATE", "GROUPS", "KEY"]);
    for peer in peers {
        let kind = if peer.wireguard { " (wireguard)" } else { "" };
        table.row([
            plain(format!("{}{kind}", peer.name)),
            plain(peer.addresses.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")),
            plain(state_text(peer, now)),
            plain(or_dash(peer.groups.join(","))),
            plain(peer.public_key.clone()),
        ]);
    }
    table.render(false)
}

/// One line of `ping`.
#[must_use]
pub fn pong(pong: &Pong) -> String {
    let who = format!("{} ({})", pong.name, pong.address);
    match pong.rtt_ms {
        Some(rtt) => format!("pong from {who} via {} in {}", path_text(&pong.path), millis(rtt)),
        None => {
            format!("no reply from {who}: {}", clean(pong.problem.as_deref().unwrap_or("no answer in time")))
        }
    }
}

fn header(out: &mut String, status: &Status) {
    let network = status.network.as_deref().unwrap_or("-");
    let Some(name) = &status.name else {
        return line(out, &format!("serving network {network} (no member here)"));
    };
    let addresses: Vec<String> = status.addresses.iter().map(ToString::to_string).collect();
    let interface = status.interface.as_ref().map(|name| format!(", interface {name}")).unwrap_or_default();
    line(out, &format!("{name} in network {network}: {}{interface}", addresses.join(" ")));
}

fn roles(out: &mut String, status: &Status) {
    let on = |listen: &[std::net::SocketAddr]| {
        listen.iter().map(ToString::to_string).collect::<Vec<_>>().join(" ")
    };
    if let Some(role) = &status.broker {
        let signs = if role.signs { "" } else { ", without the CA key" };
        let counts = format!("{} of {} members online{signs}", role.online, role.members);
        line(out, &format!("broker here: on {}, {counts}", on(&role.listen)));
    }
    if let Some(role) = &status.relay {
        let kernel = match &role.no_kernel {
            Some(why) => format!("; none in the kernel: {why}"),
            None => format!(
                ", {} by the kernel (now {} over TCP, {} over UDP)",
                bytes(role.kernel_bytes),
                role.spliced,
                role.joined
            ),
        };
        let counts = format!("{}, {} copied{kernel}", counted(role.sessions, "session"), bytes(role.bytes));
        let place = match role.listen.as_slice() {
            [] => "nowhere yet, because strangers do not get through to this machine".to_owned(),
            listen => format!("on {}", on(listen)),
        };
        line(out, &format!("relay here: {place}, {counts}"));
    }
    if let Some(role) = &status.stun {
        line(out, &format!("stun here: on {}", on(&role.listen)));
    }
}

/// `1 session`, `2 sessions`
fn counted(n: u64, what: &str) -> String {
    format!("{n} {what}{}", if n == 1 { "" } else { "s" })
}

fn broker_line(broker: &Broker) -> String {
    if !broker.connected {
        let problem = clean(broker.problem.as_deref().unwrap_or("connecting"));
        return format!("broker: not connected: {problem}; trying again");
    }
    let name = clean(broker.name.as_deref().unwrap_or("?"));
    let address = broker.address.map(|address| format!(" at {address}")).unwrap_or_default();
    let mut text = format!("broker {name}{address}: connected");
    if let Some(rtt) = broker.rtt_ms {
        let _ = write!(text, ", {}", millis(rtt));
    }
    match (broker.udp, broker.mapped) {
        (Some(false), _) => text += ", but UDP does not reach it",
        (_, Some(mapped)) => {
            let _ = write!(text, ", sees us at {mapped}");
        }
        (_, None) => {}
    }
    if let Some(problem) = &broker.problem {
        let _ = write!(text, ", but {}", clean(problem));
    }
    text
}

fn details(out: &mut String, status: &Status, now: UnixTime) {
    if let Some(key) = &status.public_key {
        line(out, &format!("key: {key}"));
    }
    if let Some(until) = status.certificate_until {
        let left = UnixTime::from_secs(until).since(now).as_secs();
        line(
            out,
            &if left == 0 {
                "certificate: expired".to_owned()
            } else {
                format!("certificate: good for {}", age(left))
            },
        );
    }
    for candidate in &status.candidates {
        line(
            out,
            &format!("reachable at: {} {} ({})", candidate.transport, candidate.address, candidate.kind),
        );
    }
    for (name, treatment) in [("udp", &status.nat.udp), ("tcp", &status.nat.tcp)] {
        if let Some(text) = treatment_text(treatment) {
            line(out, &format!("nat for {name}: {text}"));
        }
    }
    for relay in &status.relay_delays {
        let way = relay.rtt_ms.map_or_else(|| "cannot be reached".to_owned(), |rtt| format!("{rtt} ms"));
        line(out, &format!("relay {}: {way}", clean(&relay.name)));
    }
    for name in &status.unknown_peers {
        line(out, &format!("[[peer]] {}: no member of this name was ever heard of", clean(name)));
    }
    if status.revocations > 0 {
        line(out, &format!("revocations: version {}", status.revocations));
    }
    for Tried { method, tried, opened, first } in &status.methods {
        line(
            out,
            &clean(&format!("direct by {method}: {opened} of {tried}, {first} at the first introduction")),
        );
    }
    if let Some(text) = dropped_text(&status.dropped) {
        line(out, &format!("dropped: {text}"));
    }
}

/// What the router forwards; with everything, also why not.
fn router(out: &mut String, gateway: &Gateway, style: Style) {
    let address = gateway.address.map(|address| format!(" {address}")).unwrap_or_default();
    for forwarded in &gateway.forwarded {
        let note = match forwarded.worth.as_str() {
            "public" => "",
            "nothing" => ", which nobody can reach",
            _ => ", but another NAT stands outside: only others inside of that can use it",
        };
        let Forwarded { transport, protocol, internal, external, .. } = forwarded;
        let text =
            format!("router{address} forwards {transport} {external} to port {internal} ({protocol}){note}");
        line(out, &clean(&text));
    }
    if let (true, Some(problem)) = (style.verbose, &gateway.problem) {
        line(out, &format!("router: {}", clean(problem)));
    }
}

fn treatment_text(treatment: &Treatment) -> Option<String> {
    if treatment.passes == Some(false) {
        return Some("blocked".to_owned());
    }
    let parts =
        [("mapping", &treatment.mapping), ("filtering", &treatment.filtering), ("ports", &treatment.ports)];
    let known: Vec<String> = parts
        .iter()
        .filter_map(|(what, value)| value.as_ref().map(|value| format!("{what} {value}")))
        .collect();
    (!known.is_empty()).then(|| known.join(", "))
}

fn dropped_text(dropped: &Dropped) -> Option<String> {
    let Dropped {
        unknown_kind,
        malformed,
        unauthenticated,
        rate_limited,
        spoofed,
        congested,
        no_route,
        queue_full,
    } = *dropped;
    let parts: Vec<String> = [
        (unknown_kind, "of no known kind"),
        (malformed, "malformed"),
        (unauthenticated, "unauthenticated"),
        (rate_limited, "over the handshake rate"),
        (spoofed, "with a false source"),
        (congested, "marked as congested, for programs that know no marks"),
        (no_route, "without a peer for them"),
        (queue_full, "waited too long"),
    ]
    .iter()
    .filter(|(count, _)| *count > 0)
    .map(|(count, what)| format!("{count} {what}"))
    .collect();
    (!parts.is_empty()).then(|| parts.join(", "))
}

fn nobody(status: &Status) -> &'static str {
    if !status.brokers.is_empty() && status.brokers.iter().all(|broker| !broker.connected) {
        "no peers are known, because no broker is connected"
    } else {
        "no other members yet: `ntcp-overlay invite` on the broker's machine prints a token for one"
    }
}

fn peer_table(peers: &[Peer], now: UnixTime, style: Style) -> String {
    let mut table = Table::new(&["NAME", "ADDRESS", "PATH", "RTT", "LOSS", "RX", "TX", "LAST"]);
    for peer in peers {
        table.row([
            plain(peer.name.clone()),
            plain(or_dash(peer.addresses.first().map(ToString::to_string).unwrap_or_default())),
            (state_or_path(peer, now), paint(peer)),
            plain(peer.rtt_ms.map_or_else(dash, millis)),
            plain(peer.loss.map_or_else(dash, |loss| format!("{:.0}%", loss * 100.0))),
            plain(bytes(peer.rx_bytes)),
            plain(bytes(peer.tx_bytes)),
            plain(peer.last_handshake_s.map_or_else(dash, age)),
        ]);
        if style.verbose {
            peer_details(peer).iter().for_each(|note| table.note(note));
        }
    }
    table.render(style.colour)
}

fn peer_details(peer: &Peer) -> Vec<String> {
    let mut notes = Vec::new();
    if peer.addresses.len() > 1 {
        let others: Vec<String> = peer.addresses.iter().skip(1).map(ToString::to_string).collect();
        notes.push(format!("also {}", others.join(" ")));
    }
    if let Some(why) = &peer.why {
        let next = match peer.next_try_s {
            None => String::new(),
            Some(0) => "; next try now".to_owned(),
            Some(wait) => format!("; next try in {}", age(wait)),
        };
        notes.push(format!("why: {}{next}", clean(why)));
    }
    if let Some(choice) = &peer.choice {
        let method = |method: &String| format!(" (by {})", clean(method));
        let tcp = peer.beside_endpoint.map(|endpoint| {
            format!("; tcp {endpoint}{}", peer.beside_method.as_ref().map(method).unwrap_or_default())
        });
        notes.push(format!("choice: {}{}", clean(choice), tcp.unwrap_or_default()));
    }
    if !peer.groups.is_empty() {
        notes.push(format!("groups: {}", peer.groups.join(",")));
    }
    let kind = if peer.wireguard { " (stock WireGuard client)" } else { "" };
    notes.push(format!("key: {}{kind}", peer.public_key));
    notes
}

fn paint(peer: &Peer) -> Paint {
    match (peer.path.kind, peer.state) {
        (Kind::DirectUdp | Kind::DirectTcp, _) => Paint::Good,
        (Kind::Relay, _) | (Kind::None, State::Connecting | State::Active) => Paint::Fair,
        (Kind::None, State::Idle | State::Offline) => Paint::Faint,
    }
}

fn state_or_path(peer: &Peer, now: UnixTime) -> String {
    let beside = if peer.beside_endpoint.is_some() { " + tcp" } else { "" };
    if peer.path.kind == Kind::None { state_text(peer, now) } else { path_text(&peer.path) + beside }
}

fn state_text(peer: &Peer, now: UnixTime) -> String {
    match (peer.state, peer.last_seen) {
        (State::Active, _) => "active".to_owned(),
        (State::Connecting, _) => "connecting".to_owned(),
        (State::Idle, _) => "idle".to_owned(),
        (State::Offline, Some(seen)) => {
            format!("offline {}", age(now.since(UnixTime::from_secs(seen)).as_secs()))
        }
        (State::Offline, None) => "offline".to_owned(),
    }
}

fn path_text(path: &Path) -> String {
    let endpoint = path.endpoint.map_or_else(dash, |addr| addr.to_string());
    match path.kind {
        Kind::DirectUdp => format!("udp {endpoint}"),
        Kind::DirectTcp => format!("tcp {endpoint}"),
        Kind::Relay => {
            let name = path.relay.as_deref().unwrap_or("?");
            format!("relay {name}({})", path.relay_transport.as_deref().unwrap_or("udp"))
        }
        Kind::None => "nothing".to_owned(),
    }
}

/// Text that came over the network, without what could move the cursor or colour the rest.
#[must_use]
pub fn clean(text: &str) -> String {
    text.chars().map(|c| if c.is_control() && c != '\n' { '?' } else { c }).collect()
}

/// Bytes with a binary unit, three digits at most before it.
#[must_use]
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];
    if count < 1024 {
        return format!("{count} B");
    }
    let mut tenths = u128::from(count) * 10 / 1024;
    let mut unit = 0;
    while tenths >= 10_240 && unit + 1 < UNITS.len() {
        tenths /= 1024;
        unit += 1;
    }
    let name = UNITS.get(unit).copied().unwrap_or_default();
    if tenths < 100 {
        format!("{}.{} {name}", tenths / 10, tenths % 10)
    } else {
        format!("{} {name}", tenths / 10)
    }
}

/// Seconds as the largest unit that fits: `45s`, `12m`, `3h`, `2d`.
#[must_use]
pub fn age(secs: u64) -> String {
    match secs {
        0..60 => format!("{secs}s"),
        60..3600 => format!("{}m", secs / 60),
        3600..86_400 => format!("{}h", secs / 3600),
        _ => format!("{}d", secs / 86_400),
    }
}

fn millis(ms: f64) -> String {
    if ms < 100.0 { format!("{ms:.1} ms") } else { format!("{ms:.0} ms") }
}

fn plain(text: String) -> (String, Paint) {
    (text, Paint::Plain)
}

fn dash() -> String {
    "-".to_owned()
}

fn or_dash(text: String) -> String {
    if text.is_empty() { dash() } else { text }
}

fn line(out: &mut String, text: &str) {
    out.push_str(text);
    out.push('\n');
}

/// Columns as wide as their widest cell, two spaces between them.
struct Table<const N: usize> {
    rows: Vec<Row<N>>,
}

enum Row<const N: usize> {
    Cells([(String, Paint); N]),
    /// Below a row, indented, across all columns.
    Note(String),
}

impl<const N: usize> Table<N> {
    fn new(head: &[&str; N]) -> Self {
        Self { rows: vec![Row::Cells(head.map(|text| (text.to_owned(), Paint::Bold)))] }
    }

    fn row(&mut self, cells: [(String, Paint); N]) {
        self.rows.push(Row::Cells(cells));
    }

    fn note(&mut self, text: &str) {
        self.rows.push(Row::Note(text.to_owned()));
    }

    fn render(&self, colour: bool) -> String {
        let mut widths = [0; N];
        for row in &self.rows {
            let Row::Cells(cells) = row else { continue };
            for (width, (text, _)) in widths.iter_mut().zip(cells) {
                *width = text.chars().count().max(*width);
            }
        }
        let mut out = String::new();
        for row in &self.rows {
            match row {
                Row::Note(text) => line(&mut out, &format!("  {text}")),
                Row::Cells(cells) => {
                    let mut padded = String::new();
                    for ((text, paint), width) in cells.iter().zip(widths) {
                        let space = " ".repeat(width + 2 - text.chars().count());
                        padded += &painted(text, *paint, colour);
                        padded += &space;
                    }
                    line(&mut out, padded.trim_end());
                }
            }
        }
        out
    }
}

/// SGR sequences of ECMA-48 8.3.117.
fn painted(text: &str, paint: Paint, colour: bool) -> String {
    let code = match paint {
        Paint::Plain => return text.to_owned(),
        Paint::Bold => "1",
        Paint::Good => "32",
        Paint::Fair => "33",
        Paint::Faint => "2",
    };
    if colour { format!("\u{1b}[{code}m{text}\u{1b}[0m") } else { text.to_owned() }
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
