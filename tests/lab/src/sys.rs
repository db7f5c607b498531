//! One safe function per system call that neither std nor rustix offers; the lab's only `unsafe` code.
#![allow(unsafe_code, reason = "this file is the lab's thin door to the kernel")]

use std::ffi::c_int;
use std::ffi::c_short;
use std::ffi::c_uint;
use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::net::Ipv4Addr;
use std::net::UdpSocket;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Which super-packets a TAP hands over uncut.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Offload {
    /// TCP and UDP super-packets of up to 64 KiB.
    Super,
    /// Every packet on its own, as on a real wire.
    Single,
}

/// Bytes of the header in front of every frame of a TAP: `struct virtio_net_hdr`.
pub const VNET_HEADER: usize = 10;

/// Moves the calling thread, and only it, into the network namespace at `path`.
pub fn enter_netns(path: &Path) -> io::Result<()> {
    let file = File::open(path)?;
    // SAFETY: setns takes a descriptor that is open for the length of the call, and no memory.
    check(unsafe { libc::setns(file.as_raw_fd(), libc::CLONE_NEWNET) }).map(drop)
}

/// Opens a new TAP interface in the calling thread's namespace; frames carry a [`VNET_HEADER`]. Reads do not block.
pub fn open_tap(name: &str, offload: Offload) -> io::Result<File> {
    let tap = open_interface(name, libc::IFF_TAP, libc::O_NONBLOCK)?;
    set_offload(&tap, offload)?;
    Ok(tap)
}

/// Opens a new TUN interface in the calling thread's namespace; super-packets carry a [`VNET_HEADER`]. Reads block.
pub fn open_tun(name: &str) -> io::Result<File> {
    let tun = open_interface(name, libc::IFF_TUN, 0)?;
    set_offload(&tun, Offload::Super)?;
    Ok(tun)
}

fn open_interface(name: &str, kind: c_int, flags: c_int) -> io::Result<File> {
    let device = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(flags | libc::O_CLOEXEC)
        .open("/dev/net/tun")?;
    let mut request = interface(name)?;
    request.ifr_ifru.ifru_flags = (kind | libc::IFF_NO_PI | libc::IFF_VNET_HDR) as c_short;
    // SAFETY: TUNSETIFF reads and writes one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(device.as_raw_fd(), libc::TUNSETIFF, &mut request) })?;
    Ok(device)
}

/// A request about the interface of this name.
fn interface(name: &str) -> io::Result<libc::ifreq> {
    // SAFETY: `ifreq` is plain old data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= request.ifr_name.len() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "interface name too long"));
    }
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(request)
}

/// Whether an interface of the calling thread's namespace is up and carries.
pub fn carries(name: &str) -> io::Result<bool> {
    let mut request = interface(name)?;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    // SAFETY: SIOCGIFFLAGS reads and writes one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) })?;
    // SAFETY: the kernel has just written the flags.
    let flags = c_int::from(unsafe { request.ifr_ifru.ifru_flags });
    Ok(flags & libc::IFF_RUNNING != 0)
}

/// Sets how many packets wait at an interface of the calling thread's namespace.
pub fn set_queue_length(name: &str, packets: c_int) -> io::Result<()> {
    let mut request = interface(name)?;
    // The kernel's ifr_qlen, which libc calls by another member of the same union.
    request.ifr_ifru.ifru_metric = packets;
    let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0))?;
    // SAFETY: SIOCSIFTXQLEN reads one `ifreq`, which outlives the call.
    check(unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFTXQLEN, &request) }).map(drop)
}

/// Sets a socket option that is a number.
pub fn set_option(socket: &impl AsRawFd, level: c_int, name: c_int, value: c_int) -> io::Result<()> {
    let len = size_of::<c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open, and the kernel reads one `int`, which lives until the call returns.
    check(unsafe { libc::setsockopt(socket.as_raw_fd(), level, name, (&raw const value).cast(), len) })
        .map(drop)
}

/// Changes which super-packets the kernel may put into this TAP from now on.
pub fn set_offload(tap: &File, offload: Offload) -> io::Result<()> {
    const CSUM: c_uint = 0x01; // linux/if_tun.h TUN_F_*
    const TSO4: c_uint = 0x02;
    const TSO6: c_uint = 0x04;
    const USO4: c_uint = 0x20; // since Linux 6.2
    const USO6: c_uint = 0x40;
    let ladder: &[c_uint] = match offload {
        Offload::Super => &[CSUM | TSO4 | TSO6 | USO4 | USO6, CSUM | TSO4 | TSO6],
        Offload::Single => &[CSUM],
    };
    let mut last = Ok(());
    for features in ladder {
        // SAFETY: TUNSETOFFLOAD takes its argument by value.
        last = check(unsafe {
            libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, libc::c_ulong::from(*features))
        })
        .map(drop);
        if last.is_ok() {
            break;
        }
    }
    last
}

/// Lets the calling thread's sleeps end on time (the kernel's default slack is 50 µs) and gives it precedence.
pub fn keep_time() {
    // SAFETY: both calls take numbers only. A refusal costs accuracy and nothing else.
    unsafe {
        libc::prctl(libc::PR_SET_TIMERSLACK, 1 as libc::c_ulong);
        let me = libc::syscall(libc::SYS_gettid) as libc::id_t;
        libc::setpriority(libc::PRIO_PROCESS, me, -15);
    }
}

/// Runs `handler` on SIGINT and SIGTERM, once; a second signal ends the process. The handler may only store to atomics.
pub fn on_interrupt(handler: extern "C" fn(c_int)) -> io::Result<()> {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        // SAFETY: `sigaction` is plain old data; the handler is an `extern "C"` function of the right type and, by this
        // function's contract, async-signal-safe.
        unsafe {
            let mut action: libc::sigaction = std::mem::zeroed();
            action.sa_sigaction = handler as *const () as libc::sighandler_t;
            action.sa_flags = libc::SA_RESETHAND;
            check(libc::sigaction(signal, &action, std::ptr::null_mut()))?;
        }
    }
    Ok(())
}

/// Sends `signal` to one process.
pub fn kill(pid: u32, signal: c_int) -> io::Result<()> {
    // SAFETY: kill takes numbers only.
    check(unsafe { libc::kill(pid as libc::pid_t, signal) }).map(drop)
}

/// Sends `signal` to every process of the group that `leader` leads.
pub fn kill_group(leader: u32, signal: c_int) -> io::Result<()> {
    // SAFETY: killpg takes numbers only.
    check(unsafe { libc::killpg(leader as libc::pid_t, signal) }).map(drop)
}

/// Whether this process is root.
pub fn is_root() -> bool {
    // SAFETY: geteuid takes nothing and always succeeds.
    unsafe { libc::geteuid() == 0 }
}

fn check(result: c_int) -> io::Result<c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
