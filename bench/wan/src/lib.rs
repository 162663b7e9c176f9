//! An emulated wide-area network: UDP relays with delay, loss and cuts
