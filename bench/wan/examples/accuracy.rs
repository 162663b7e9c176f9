//! Measures how late datagrams are, and how many a relay carries.

use std::error::Error;
use std::net::UdpSocket;
use std::time::{Duration, Instant};

use meridian_wan::{Wan, WanDelays};

const ONE_WAY: Duration = Duration::from_millis(40);
const DATAGRAM_BYTES: usize = 1_200;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let delays = WanDelays::new(["us", "eu"])?.round_trip("us", "eu", 2 * ONE_WAY)?;
    let wan = Wan::new(delays)?;
    let (client, server) = (UdpSocket::bind("127.0.0.1:0")?, UdpSocket::bind("127.0.0.1:0")?);
    let relay = wan.relay("us", "eu", server.local_addr()?).await?;
    client.connect(relay)?;
    // Datagrams the kernel dropped in a receive buffer show as a shorter count, not as a hang.
    server.set_read_timeout(Some(Duration::from_secs(1)))?;
    socket2::SockRef::from(&server).set_recv_buffer_size(4 << 20)?;

    for (rate, count) in [(100, 300), (5_000, 10_000), (20_000, 60_000), (50_000, 150_000)] {
        let (client, server) = (client.try_clone()?, server.try_clone()?);
        let sender = std::thread::spawn(move || send(&client, rate, count));
        let late = tokio::task::spawn_blocking(move || receive(&server, count)).await??;
        sender.join().map_err(|_| "the sender panicked")??;
        report(rate, count, late);
    }
    Ok(())
}

/// Sends at a rate per second, in bursts of a millisecond; each datagram says when it left.
fn send(client: &UdpSocket, rate: u32, count: u32) -> std::io::Result<()> {
    let start = Instant::now();
    let mut datagram = [0; DATAGRAM_BYTES];
    for number in 0..count {
        let at = Duration::from_secs(1) * number / rate;
        if let Some(early) = at.checked_sub(start.elapsed())
            && early > Duration::from_millis(1)
        {
            std::thread::sleep(early);
        }
        datagram[..8].copy_from_slice(&clock_ns().to_be_bytes());
        client.send(&datagram)?;
    }
    Ok(())
}

/// How late each datagram was in ns.
fn receive(server: &UdpSocket, count: u32) -> std::io::Result<Vec<u64>> {
    let mut late = Vec::new();
    let mut datagram = [0; DATAGRAM_BYTES];
    while late.len() < count as usize && server.recv(&mut datagram).is_ok() {
        let mut sent = [0; 8];
        sent.copy_from_slice(&datagram[..8]);
        let under_way = clock_ns() - u64::from_be_bytes(sent);
        late.push(under_way.checked_sub(ONE_WAY.as_nanos() as u64).ok_or(std::io::ErrorKind::InvalidData)?);
    }
    late.sort_unstable();
    Ok(late)
}

fn report(rate: u32, count: u32, late: Vec<u64>) {
    let at =
        |share: f64| late.get((late.len() as f64 * share) as usize).copied().unwrap_or_default() as f64 / 1e6;
    let mb_per_s = f64::from(rate) * DATAGRAM_BYTES as f64 / 1e6;
    println!(
        "{rate} datagrams/s ({mb_per_s:.1} MB/s): {} of {count} came, late by ms: median {:.3}, p99 {:.3}, max {:.3}",
        late.len(),
        at(0.5),
        at(0.99),
        late.last().copied().unwrap_or_default() as f64 / 1e6,
    );
}

/// Nanoseconds of one clock for both threads.
fn clock_ns() -> u64 {
    static START: std::sync::OnceLock<Instant> = std::sync::OnceLock::new();
    START.get_or_init(Instant::now).elapsed().as_nanos() as u64
}
