//! What a network does, seen from plain UDP sockets and iperf3; independent of everything under test.

use std::net::IpAddr;
use std::net::SocketAddr;
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;

use crate::ns::Namespace;

/// How long a datagram may take before it counts as filtered; several times any round trip of the lab.
const PATIENCE: Duration = Duration::from_millis(400);

/// A UDP socket on a host, with a patience set.
pub fn socket(ns: &Namespace, address: SocketAddr) -> Result<UdpSocket> {
    ns.inside(move || {
        let socket = UdpSocket::bind(address)?;
        socket.set_read_timeout(Some(PATIENCE))?;
        std::io::Result::Ok(socket)
    })?
    .with_context(|| format!("cannot bind {address} on {}", ns.name()))
}

/// The address under which `server` sees `client`.
pub fn mapped(client: &UdpSocket, server: &UdpSocket) -> Result<SocketAddr> {
    client.send_to(b"who am I", server.local_addr()?)?;
    let (_, from) = server.recv_from(&mut [0; 64]).context("nothing came out of the NAT")?;
    Ok(from)
}

/// Whether a datagram from `sender` to `target` arrives at `receiver`.
pub fn passes(sender: &UdpSocket, receiver: &UdpSocket, target: SocketAddr) -> Result<bool> {
    sender.send_to(b"let me in", target)?;
    let from = sender.local_addr()?;
    Ok(matches!(receiver.recv_from(&mut [0; 64]), Ok((_, source)) if source == from))
}

/// One TCP stream from `client` to `server`, in Mbit/s as received.
pub fn tcp_rate(client: &Namespace, server: &Namespace, address: IpAddr, seconds: u32) -> Result<f64> {
    let address = address.to_string();
    let mut listening = server.spawn(&["iperf3", "-s", "-1", "-B", &address, "--forceflush"])?;
    listening.wait_for_line("listening", Duration::from_secs(10))?;
    let report = client.run(&["iperf3", "-J", "-c", &address, "-t", &seconds.to_string()])?;
    let report: serde_json::Value = serde_json::from_str(&report)?;
    let bits = report.pointer("/end/sum_received/bits_per_second").and_then(serde_json::Value::as_f64);
    Ok(bits.context("iperf3 reported no rate")? / 1e6)
}
