//! The matrices that come with the planner.

use super::{Matrix, parse};

/// Names that [`builtin`] knows.
pub const BUILTIN_NAMES: [&str; 6] = ["aws", "aws-all", "aws-2021", "azure", "gcp", "ibm"];

/// The three regions that examples and demonstrations use, as `name=AWS region`.
pub const DEFAULT_REGIONS: [&str; 3] = ["us-east=us-east-1", "us-west=us-west-2", "eu=eu-west-1"];

/// A matrix that comes with the planner:
/// - `aws`: 12 AWS regions, p50 of the year to 2025-05-29;
/// - `aws-all`: 32 AWS regions, same source;
/// - `aws-2021`: 5 AWS regions, mean of ICMP pings between virtual machines, February 2021;
/// - `azure`: 51 Azure regions, monthly p50 of March 2026, some pairs missing;
/// - `gcp`: 20 Google Cloud regions, mean of ICMP pings between virtual machines, September 2019;
/// - `ibm`: 8 IBM Cloud regions, mean of July and August 2026.
pub fn builtin(name: &str) -> Option<Matrix> {
    let text = match name {
        "aws" => include_str!("../../data/aws-p50-2025-05.json"),
        "aws-all" => include_str!("../../data/aws_cloudping_p50_1y_2025-05-29.csv"),
        "aws-2021" => include_str!("../../data/aws_ping_fantoch_2021-02-13.csv"),
        "azure" => include_str!("../../data/azure_msdocs_p50_2026-03.csv"),
        "gcp" => include_str!("../../data/gcp_ping_fantoch_2019-09-18.csv"),
        "ibm" => include_str!("../../data/ibm-vpc-mean-2026-08.json"),
        _ => return None,
    };
    Some(parse(text).0)
}

/// The default three regions: us-east, us-west and eu (AWS us-east-1, us-west-2, eu-west-1; about
/// 64, 70 and 118 ms apart).
pub fn default_regions() -> Matrix {
    builtin("aws")
        .and_then(|matrix| matrix.select(&DEFAULT_REGIONS.map(str::to_owned)).ok())
        .expect("the built-in matrix has the default regions: a test selects them")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diagnostic::has_errors;

    #[test]
    fn every_builtin_matrix_is_complete() {
        for name in BUILTIN_NAMES {
            let matrix = builtin(name).unwrap();
            assert!(matrix.regions().len() >= 5, "{name}");
            // Azure's own table lacks pairs.
            assert!(name == "azure" || !has_errors(&matrix.check(matrix.regions())), "{name}");
        }
        let azure = builtin("azure").unwrap();
        assert!(azure.round_trip("westeurope", "eastus").is_some_and(|trip| trip.p50_ms > 70.0));
        assert!(builtin("alibaba").is_none());
    }

    #[test]
    fn the_default_regions_are_where_they_should_be() {
        let matrix = default_regions();
        let between = |a, b| matrix.round_trip(a, b).unwrap().p50_ms;
        assert!((between("us-east", "us-west") - 64.15).abs() < 1e-9);
        assert!((between("us-east", "eu") - 69.6).abs() < 1e-9);
        assert!((between("us-west", "eu") - 118.3).abs() < 1e-9);
    }
}
