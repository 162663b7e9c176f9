//! Measures how fast one stream between two regions is, and how long a probe takes beside it:
//! `throughput [RTT_MS] [LOSS] [SECONDS]`.

use std::error::Error;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use meridian_bridge::certificates::{Authority, Identity, PeerName};
use meridian_bridge::probe::{self, Probes};
use meridian_bridge::transport::{Congestion, PeerAddress, Settings, Transport};
use meridian_seam::Environment;
use meridian_wan::{Conditions, Wan, WanDelays};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

#[tokio::main]
async fn main() -> Result<()> {
    let argument = |index, default: f64| match std::env::args().nth(index) {
        Some(text) => text.parse::<f64>(),
        None => Ok(default),
    };
    let rtt = Duration::from_secs_f64(argument(1, 100.0)? / 1_000.0);
    let loss = argument(2, 0.01)?;
    let duration = Duration::from_secs_f64(argument(3, 20.0)?);
    for congestion in [Congestion::Bbr, Congestion::Cubic] {
        println!("{rtt:?}, loss {:.1} %, {congestion:?}:", loss * 100.0);
        measure(rtt, loss, duration, congestion).await?;
    }
    Ok(())
}

async fn measure(rtt: Duration, loss: f64, duration: Duration, congestion: Congestion) -> Result<()> {
    let env = Environment::production();
    let directory = tempfile::tempdir()?;
    let authority = Authority::create(env.clock.as_ref(), 1)?;
    let settings = Settings { congestion, ..Settings::default() };
    let server = |region: &str| -> Result<Transport> {
        let name = PeerName::new(region, format!("{region}-1"));
        let paths = authority.issue(&name, env.clock.as_ref(), 1)?.save(directory.path())?;
        let identity = Arc::new(Identity::load(paths, Arc::clone(&env.clock))?);
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Ok(Transport::bind(&env, address, identity, &name, settings.clone())?)
    };
    let (us, eu) = (server("us")?, server("eu")?);
    let conditions = Conditions { one_way: rtt / 2, jitter: Duration::ZERO, loss };
    let delays = WanDelays::new(["us", "eu"])?;
    let wan = Wan::new(delays.direction("us", "eu", conditions)?.direction("eu", "us", conditions)?)?;
    let address = wan.relay("us", "eu", eu.local_addr()?).await?.to_string();
    let peer = PeerAddress { region: "eu".into(), server: "eu-1".into(), address };
    let connection = loop {
        match us.connect(&peer).await {
            Ok(connection) => break connection,
            Err(error) => println!("{error}"),
        }
    };
    let probes = Arc::new(Probes::default());
    let (measured, clock, probing) = (Arc::clone(&probes), Arc::clone(&env.clock), connection.clone());
    tokio::spawn(async move {
        probe::measure(&probing, &measured, clock.as_ref(), Duration::from_millis(50)).await
    });
    let mut sending = connection.open(0).await?;
    let mut receiving = eu.accept().await.ok_or("the transport closed")?.stream;
    tokio::spawn(async move {
        let block = vec![0; 64 << 10];
        while sending.write_all(&block).await.is_ok() {}
    });
    let (start, mut bytes, mut block) = (Instant::now(), 0, vec![0; 256 << 10]);
    while start.elapsed() < duration {
        bytes += receiving.read(&mut block).await?;
    }
    println!("  {:.1} Mbit/s", bytes as f64 * 8.0 / 1e6 / start.elapsed().as_secs_f64());
    println!("  {:?}", probes.summary("eu", env.clock.monotonic()));
    Ok(())
}
