//! A laboratory on one machine: hosts, routers with real NATs, and wires with delay, made of Linux network namespaces.
//!
//! A [`Lab`] owns everything it makes: namespaces (all named `ntl-<id>-<name>`), processes in them, wires between them,
//! and one directory `/run/ntl/<id>` that also records which process owns the lab. Dropping the lab removes all of it;
//! `ntcp-lab clean` (and the start of every new lab) removes what a killed lab left behind, found by that record. Nothing
//! else on the machine is touched: no interface, route or rule exists outside the lab's own namespaces. Labs run side by
//! side.
//!
//! The lab knows nothing of the product but its command line ([`product`]). NATs are the kernel's own, by nftables, so
//! what is measured here is what a Linux router does. Everything needs root; [`tools::missing`] says what else is absent.
//!
//! | module | one line |
//! |---|---|
//! | [`lab`] | a lab's life |
//! | [`leftovers`] | its end, also after its owner was killed |
//! | [`ns`] | one namespace: commands, processes, sysctls, sockets inside it |
//! | [`process`] | a program's run: output, limits, end |
//! | [`wire`] | links: plain veth, or delayed, lossy and rate-limited |
//! | [`nat`] | what a router does to packets, as nftables rules |
//! | [`topology`] | an internet, sites behind routers, hosts |
//! | [`probe`] [`classify`] | what a network does, what a NAT does, seen from plain sockets |
//! | [`temper`] [`raw`] | what a NAT does when it is provoked, seen by single packets |
//! | [`check`] | every NAT against what strangers' programs say of it |
//! | [`proxy`] [`gateway`] | HTTP and SOCKS5 proxies; UPnP, NAT-PMP and PCP on a router |
//! | [`discovery`] | what the product finds before each NAT |
//! | [`openssh`] [`wireguard`] [`product`] | programs that run in a lab |
//! | [`matrix`] | the product between every pair of NATs |
//! | [`demo`] [`mod@bench`] | what `make demo` and `make bench` show |
//! | [`timing`] | how fast the lab itself is |
//! | [`interrupt`] [`tools`] [`sys`] | Ctrl-C, what is installed, system calls |

pub mod bench;
pub mod check;
pub mod classify;
pub mod demo;
pub mod discovery;
pub mod gateway;
pub mod interrupt;
pub mod lab;
pub mod leftovers;
pub mod matrix;
pub mod nat;
pub mod ns;
pub mod openssh;
pub mod probe;
pub mod process;
pub mod product;
pub mod proxy;
pub mod raw;
pub mod sys;
pub mod temper;
pub mod timing;
pub mod tools;
pub mod topology;
pub mod wire;
pub mod wireguard;

pub use gateway::Gateway;
pub use lab::Lab;
pub use nat::Nat;
pub use ns::Namespace;
pub use process::Process;
pub use proxy::Proxy;
pub use topology::Egress;
pub use topology::Host;
pub use topology::Internet;
pub use topology::Router;
pub use topology::Server;
pub use topology::Site;
pub use wire::Link;
pub use wire::Profile;
