//! `meridian certs`: the authority of a mesh and the certificates of its servers.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use meridian_bridge::certificates::{AUTHORITY_VALID_DAYS, Authority, PeerName, SERVER_VALID_DAYS};
use meridian_seam::clock::SystemClock;

use crate::config::server_name;

#[derive(Debug, Args)]
pub(super) struct CertsArgs {
    #[command(subcommand)]
    command: CertsCommand,
}

#[derive(Debug, Subcommand)]
enum CertsCommand {
    /// Make the authority of a new mesh: authority.pem and authority.key
    Authority {
        /// Where to put the files
        #[arg(long, default_value = ".")]
        directory: PathBuf,
        /// Days until it expires
        #[arg(long, default_value_t = AUTHORITY_VALID_DAYS)]
        days: u32,
    },
    /// Issue the certificate of a server, with a new key
    Issue {
        /// The server's region
        region: String,
        /// Its number in the region, 0 to 255
        server: u8,
        /// Where authority.pem and authority.key are, and where the server's files go
        #[arg(long, default_value = ".")]
        directory: PathBuf,
        /// Days until it expires
        #[arg(long, default_value_t = SERVER_VALID_DAYS)]
        days: u32,
    },
}

pub(super) fn run(args: &CertsArgs) -> anyhow::Result<ExitCode> {
    match &args.command {
        CertsCommand::Authority { directory, days } => {
            std::fs::create_dir_all(directory)?;
            Authority::create(&SystemClock::new(), *days)?.save(directory)?;
            println!("{}", directory.join("authority.pem").display());
            println!(
                "Keep {} off the servers: whoever has it can join the mesh.",
                directory.join("authority.key").display()
            );
        }
        CertsCommand::Issue { region, server, directory, days } => {
            let authority = Authority::load(directory)?;
            let name = PeerName::new(region, server_name(region, *server));
            let paths = authority.issue(&name, &SystemClock::new(), *days)?.save(directory)?;
            println!("certificate = {:?}", paths.certificate);
            println!("key = {:?}", paths.key);
            println!("authority = {:?}", paths.authority);
        }
    }
    Ok(ExitCode::SUCCESS)
}
