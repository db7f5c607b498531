//! Sessions whose UDP messages the kernel carries: two sides bound at one socket of the relay, with one channel.
//!
//! Nothing is asked of the members: they send and receive what they always do, to and from the address that they always
//! do. The kernel takes a message out of the relay's socket's way if the sender's endpoint and the channel in its header
//! are those of a bound side, and sends it on from the same address. Everything else still arrives at the socket: binds,
//! fragments, whoever is not joined. So when a side moves, or binds over TCP, the relay copies again from the next message
//! on, and nobody has to notice that anything broke.

use std::collections::HashMap;
use std::collections::VecDeque;

use crate::relay::backend::Why;
use crate::relay::splices::Order;
use crate::relay::splices::number_of;
use crate::wire::relay::Flow;

/// What the kernel was asked to carry, by session. Invariant: `working` counts what it does carry.
#[derive(Default)]
pub(super) struct Flows {
    by_slot: HashMap<usize, (Flow, State)>,
    working: usize,
    orders: VecDeque<Order>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    Ordered,
    Works,
    /// The kernel said no: it is asked again when a side has moved.
    Refused,
}

impl Flows {
    /// What the session in `slot` needs now; `None`: user space.
    pub(super) fn set(&mut self, slot: usize, wanted: Option<Flow>) {
        let old = self.by_slot.get(&slot).map(|(flow, _)| *flow);
        if old == wanted {
            return;
        }
        if let Some((flow, state)) = self.by_slot.remove(&slot)
            && state != State::Refused
        {
            self.working -= usize::from(state == State::Works);
            self.orders.push_back(Order::Part { number: number_of(slot), flow });
        }
        if let Some(flow) = wanted {
            self.by_slot.insert(slot, (flow, State::Ordered));
            self.orders.push_back(Order::Join { number: number_of(slot), flow });
        }
    }

    /// The kernel carries it, or has said why not.
    pub(super) fn handle_joined(&mut self, number: u32, done: bool) {
        let slot = usize::try_from(number).unwrap_or(usize::MAX);
        let Some((_, state)) = self.by_slot.get_mut(&slot) else { return };
        self.working -= usize::from(*state == State::Works);
        *state = if done { State::Works } else { State::Refused };
        self.working += usize::from(done);
    }

    /// Whether the kernel carries this session, or why it does not although it could.
    pub(super) fn state(&self, slot: usize) -> Result<(), Option<Why>> {
        match self.by_slot.get(&slot).map(|(_, state)| *state) {
            Some(State::Works) => Ok(()),
            Some(State::Refused) => Err(Some(Why::Refused)),
            Some(State::Ordered) | None => Err(None),
        }
    }

    /// Sessions that the kernel carries.
    pub(super) fn count(&self) -> usize {
        self.working
    }

    pub(super) fn poll_order(&mut self) -> Option<Order> {
        self.orders.pop_front()
    }
}
