//! The crypto-less forwarders: what a tunnel between two machines could do at most, if sealing cost nothing.
//!
//! Both take super-packets of a TUN device and hand them to the other side, which writes them to its own as they were. Over
//! TCP each is one record. Over UDP its bytes are cut into datagrams that fit the wire, sent by the run (`UDP_SEGMENT`) and
//! received by the run (`UDP_GRO`); no header is rewritten, no checksum computed. They are no protocol: whoever can reach
//! the port is believed, so they belong into a lab.
//!
//! ```text
//! record (TCP)    | length u32 | virtio_net_hdr, packet |
//! datagram (UDP)  | number of the packet u16 | bytes of it u32 | place of this part u16 | part |
//! ```

use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::net::TcpStream;
use std::net::UdpSocket;
use std::thread;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use anyhow::bail;

use crate::sys;

/// Room for one packet of the device and its header, bytes.
const ROOM: usize = 65_536 + sys::VNET_HEADER;
/// Bytes of a datagram: a wire's MTU of 1,500 less IPv4 and UDP.
const DATAGRAM: usize = 1472;
/// Bytes before the part in it.
const HEAD: usize = 8;
/// Datagrams in one message at most (`UDP_MAX_SEGMENTS` before Linux 6.8), and bytes.
const RUN: usize = 44;
/// Bytes that the receiver's socket may hold.
const BUFFER: i32 = 4 << 20;

/// Which carrier.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Carrier {
    /// Datagrams, by the run.
    Udp,
    /// Records in one stream.
    Tcp,
}

/// Forwards between the device `name`, which this makes, and the other side, until killed. Over TCP the side without
/// `peer` listens.
pub fn run(name: &str, carrier: Carrier, local: SocketAddr, peer: SocketAddr, listens: bool) -> Result<()> {
    let tun = sys::open_tun(name).with_context(|| format!("cannot open the device {name}"))?;
    println!("ready");
    match carrier {
        Carrier::Udp => {
            let socket = UdpSocket::bind(local)?;
            socket.connect(peer)?;
            sys::set_option(&socket, libc::SOL_UDP, libc::UDP_GRO, 1)?;
            sys::set_option(&socket, libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, BUFFER)?;
            sys::set_option(&socket, libc::SOL_UDP, libc::UDP_SEGMENT, DATAGRAM as i32)?;
            let (tun2, socket2) = (tun.try_clone()?, socket.try_clone()?);
            both(move || device_to_datagrams(&tun, &socket), move || datagrams_to_device(&socket2, &tun2))
        }
        Carrier::Tcp => {
            let stream = if listens { TcpListener::bind(local)?.accept()?.0 } else { connect(peer)? };
            stream.set_nodelay(true)?;
            let (tun2, stream2) = (tun.try_clone()?, stream.try_clone()?);
            both(move || device_to_stream(&tun, &stream), move || stream_to_device(&stream2, &tun2))
        }
    }
}

/// A thread for each direction; the first that ends, ends all.
fn both(
    out: impl FnOnce() -> Result<()> + Send + 'static,
    back: impl FnOnce() -> Result<()> + Send + 'static,
) -> Result<()> {
    let (tell, ended) = std::sync::mpsc::channel();
    let tell2 = tell.clone();
    thread::spawn(move || tell.send(out()));
    thread::spawn(move || tell2.send(back()));
    ended.recv()?
}

fn connect(peer: SocketAddr) -> Result<TcpStream> {
    for _ in 0..100 {
        if let Ok(stream) = TcpStream::connect(peer) {
            return Ok(stream);
        }
        thread::sleep(Duration::from_millis(50));
    }
    bail!("nobody listens at {peer}")
}

fn device_to_stream(mut tun: &File, mut stream: &TcpStream) -> Result<()> {
    let mut record = vec![0; 4 + ROOM];
    loop {
        let len = tun.read(&mut record[4..])?;
        record[..4].copy_from_slice(&u32::try_from(len)?.to_be_bytes());
        stream.write_all(&record[..4 + len])?;
    }
}

fn stream_to_device(mut stream: &TcpStream, mut tun: &File) -> Result<()> {
    let mut buffer = vec![0; 4 * ROOM];
    let (mut start, mut end) = (0, 0);
    loop {
        while let Some(head) = buffer[start..end].first_chunk::<4>() {
            let len = u32::from_be_bytes(*head) as usize;
            let Some(record) = buffer[start..end].get(4..4 + len) else { break };
            // What the kernel has no room for is lost.
            let _ = tun.write(record);
            start += 4 + len;
        }
        if buffer.len() - end < 4 + ROOM {
            buffer.copy_within(start..end, 0);
            (start, end) = (0, end - start);
        }
        match stream.read(&mut buffer[end..])? {
            0 => bail!("the other side has gone"),
            got => end += got,
        }
    }
}

fn device_to_datagrams(mut tun: &File, socket: &UdpSocket) -> Result<()> {
    let (mut packet, mut run) = (vec![0; ROOM], Vec::with_capacity(RUN * DATAGRAM));
    for number in (0..=u16::MAX).cycle() {
        let len = tun.read(&mut packet)?;
        for (batch, bytes) in packet[..len].chunks(RUN * (DATAGRAM - HEAD)).enumerate() {
            run.clear();
            for (index, part) in bytes.chunks(DATAGRAM - HEAD).enumerate() {
                run.extend(number.to_be_bytes());
                run.extend(u32::try_from(len)?.to_be_bytes());
                run.extend(u16::try_from(batch * RUN + index)?.to_be_bytes());
                run.extend(part);
            }
            // Nobody there yet, or no room: lost.
            let _ = socket.send(&run);
        }
    }
    Ok(())
}

fn datagrams_to_device(socket: &UdpSocket, mut tun: &File) -> Result<()> {
    let (mut run, mut packet) = (vec![0; 65_536], vec![0; 2 * ROOM]);
    let (mut number, mut next) = (None, 0_u16);
    loop {
        let Ok(len) = socket.recv(&mut run) else { continue };
        for datagram in run[..len].chunks(DATAGRAM) {
            let Some((head, part)) = datagram.split_first_chunk::<HEAD>() else { continue };
            let [a, b, l0, l1, l2, l3, p0, p1] = *head;
            let (total, place) =
                (u32::from_be_bytes([l0, l1, l2, l3]) as usize, u16::from_be_bytes([p0, p1]));
            if place == 0 {
                (number, next) = (Some([a, b]), 0);
            }
            // A part is missing: the packet is lost.
            if number != Some([a, b]) || place != next || total > ROOM {
                number = None;
                continue;
            }
            let at = usize::from(place) * (DATAGRAM - HEAD);
            let Some(room) = packet.get_mut(at..at + part.len()) else { continue };
            room.copy_from_slice(part);
            next += 1;
            if at + part.len() == total {
                let _ = tun.write(&packet[..total]);
                number = None;
            }
        }
    }
}
