//! The findings' exact words, as a user reads them.

use expect_test::{Expect, expect};
use meridian_topology::diagnostic::Diagnostic;
use meridian_topology::plan::{Objective, plan};
use meridian_topology::{matrix, report, scenario};

fn check_scenario(text: &str, expected: Expect) {
    let diagnostics = match scenario::parse(text).and_then(|scenario| plan(&scenario, Objective::Mean)) {
        Ok(plan) => plan.diagnostics,
        Err(diagnostics) => diagnostics,
    };
    check(&diagnostics, expected);
}

fn check_matrix(text: &str, expected: Expect) {
    let (matrix, mut diagnostics) = matrix::parse(text);
    diagnostics.extend(matrix.check(matrix.regions()));
    check(&diagnostics, expected);
}

fn check(diagnostics: &[Diagnostic], expected: Expect) {
    expected.assert_eq(&report::findings(diagnostics));
}

/// A scenario without findings, with `more` added.
fn with(more: &str) -> String {
    format!(
        r#"
regions = ["us-east", "us-west", "eu"]
client_write_share = {{ us-east = 0.5, us-west = 0.25, eu = 0.25 }}
require = {{ survive_regions = 1 }}
rtt.us-east = {{ us-west = {{ p50 = 62, p99 = 66 }}, eu = {{ p50 = 75, p99 = 80 }} }}
rtt.us-west = {{ eu = {{ p50 = 130, p99 = 138 }} }}
{more}
"#
    )
}

#[test]
fn a_good_scenario_is_passed_in_silence() {
    check_scenario(&with(""), expect![[""]]);
}

#[test]
fn unknown_keys_name_the_nearest_known_one() {
    check_scenario(
        &with("max_voter = 5\n[failure]\nnode_unavailable = 1e-3\n[rtt.eu]\nus-east = {p50 = 1, p90 = 2}"),
        expect![[r#"
            error[unknown-key]: max_voter: no such key: max_voter
              help: did you mean max_voters?
            error[unknown-key]: failure.node_unavailable: no such key: node_unavailable
              help: did you mean node_unavail?
            error[unknown-key]: rtt.eu.us-east.p90: no such key: p90
              help: did you mean p99?
        "#]],
    );
}

#[test]
fn wrong_values_are_reported_under_their_key() {
    check_scenario(
        &with("client_rtt = \"fast\"\nmax_voters = -1\ndesigns = [\"round\"]\nwitness = 3"),
        expect![[r#"
            error[bad-value]: client_rtt: invalid type: string "fast", expected f64
            error[bad-value]: designs: unknown variant `round`, expected one of `flat`, `hier`, `hierarchical`, `two`, `two-level`
            error[bad-value]: max_voters: invalid value: integer `-1`, expected usize
            error[bad-value]: witness: invalid type: integer `3`, expected a sequence
        "#]],
    );
    check_scenario(
        &with("max_voters = 99\ndesigns = []\nfailure.node_unavail = 1.5\ndist.rtt_shift = 1"),
        expect![[r#"
            error[bad-value]: dist.rtt_shift: 1 is not in 0 to below 1
            error[bad-value]: failure.node_unavail: 1.5 is not in 0 to below 1
            error[bad-value]: max_voters: 99 is not in 1 to 31
            error[bad-value]: designs: no design to consider
              help: leave the key out to compare flat, hier and two
        "#]],
    );
    check_scenario(
        &with("client_rtt = -1\nfsync = {p50 = 8, p99 = 1}\ncoordinates.eu = [100, 0]"),
        expect![[r#"
            error[bad-latency]: client_rtt: -1 is not a time of 0 to 60000 ms
            error[tail-below-median]: fsync: p99 1 ms lies below p50 8 ms
              help: swap the two, or leave the p99 out
            error[bad-value]: coordinates.eu: 100, 0 is not a latitude and a longitude in degrees
        "#]],
    );
    check_scenario(
        "{\"regions\": [\"a\",",
        expect![[r#"
        error[syntax]: scenario: EOF while parsing a value at line 1 column 17
    "#]],
    );
    check_scenario(
        "regions = [",
        expect![[r#"
        error[syntax]: scenario: TOML parse error at line 1, column 12
          |
        1 | regions = [
          |            ^
        invalid array
        expected `]`
    "#]],
    );
    check_scenario(
        "[1]",
        expect![[r#"
        error[unknown-key]: 1: no such key: 1
          help: known here: name, regions, coordinates, rtt, client_write_share, client_rtt, fsync, zone_rtt, dist, failure, designs, max_voters, max_per_region, max_per_region_default, witness, never_leader, preferred_leaders, require
    "#]],
    );
}

#[test]
fn unknown_regions_name_the_nearest_known_one() {
    check_scenario(
        &with("witness = [\"eu-west\"]\nnever_leader = [\"us-weast\"]\nmax_per_region.mars = 1"),
        expect![[r#"
            error[unknown-region]: witness: eu-west is not one of the regions
              help: did you mean eu?
            error[unknown-region]: never_leader: us-weast is not one of the regions
              help: did you mean us-west?
            error[unknown-region]: max_per_region: mars is not one of the regions
        "#]],
    );
}

#[test]
fn pairs_must_be_complete() {
    check_scenario(
        "regions = [\"a\", \"b\", \"c\"]\nrtt.a = { b = 10 }\n",
        expect![[r#"
            error[unknown-region]: regions: c is not among the 2 regions of the matrix
        "#]],
    );
    check_scenario(
        "regions = [\"a\", \"b\", \"c\"]\nrtt.a = { b = 10, c = 12 }\n",
        expect![[r#"
            error[missing-pair]: rtt b - c: no round-trip time in either direction
              help: add a line b,c,<ms> or leave one of the regions out
        "#]],
    );
    check_scenario(
        "rtt.a = { b = 10 }\n",
        expect![[r#"
        error[no-regions]: regions: no regions to plan for
          help: name them in `regions`, or with --regions a,b,c
    "#]],
    );
}

#[test]
fn impossible_times_are_refused() {
    check_scenario(
        "regions = [\"a\", \"b\", \"c\"]\nrtt.a = { b = -10, c = nan }\nrtt.b = { c = { p50 = 10, p99 = 9 } }\n",
        expect![[r#"
            error[bad-latency]: rtt.a.b: a to b: -10 ms is not a round-trip time
              help: give a number of milliseconds above 0 and up to 60000, or leave the pair out
            error[bad-latency]: rtt.a.c: a to c: NaN ms is not a round-trip time
              help: give a number of milliseconds above 0 and up to 60000, or leave the pair out
            error[tail-below-median]: rtt.b.c: b to c: p99 9 ms lies below p50 10 ms
              help: swap the two, or leave the p99 out
        "#]],
    );
    let places = "coordinates = { us-east = [38.9, -77.4], us-west = [45.8, -119.7], eu = [53.3, -6.3] }\n";
    check_scenario(&with(places), expect![[""]]);
    check_scenario(
        &with(&places.replace("-119.7", "139.7")),
        expect![[r#"
        error[faster-than-light]: rtt us-east - us-west: 62.0 ms for 9896 km: light in vacuum needs 66.0 ms
          help: check the coordinates, and that the figure is a round trip in milliseconds
    "#]],
    );
    check_scenario(
        &with(&places.replace("-119.7", "-179.7")),
        expect![[r#"
        warning[faster-than-fibre]: rtt us-east - us-west: 62.0 ms for 7834 km: light in a straight fibre needs 76.7 ms
          help: check the coordinates and the figure
    "#]],
    );
}

#[test]
fn a_search_without_end_is_refused() {
    let text = with("max_voters = 31\nmax_per_region_default = 31\n");
    let mut scenario = scenario::parse(&text).unwrap();
    scenario.matrix = matrix::builtin("aws").unwrap();
    scenario.rtt.clear();
    scenario.restrict(matrix::builtin("aws").unwrap().regions());
    check(
        &plan(&scenario, Objective::Mean).unwrap_err(),
        expect![[r#"
            error[too-large]: max_voters: 78663679872 layouts; the search takes 3000000000
              help: lower max_voters or max_per_region_default, or set max_per_region to 0 where no voter should stand
        "#]],
    );
}

#[test]
fn shares_and_preferences_are_checked() {
    check_scenario(
        &with("").replace("us-east = 0.5", "us-east = 0.25"),
        expect![[r#"
        warning[share-sum]: client_write_share: the shares add up to 0.7500, not 1
          help: they are scaled to one; correct them if a region is missing
    "#]],
    );
    check_scenario(
        &with("").replace("0.25", "-0.25"),
        expect![[r#"
        error[bad-value]: client_write_share.eu: -0.25 is not a share of the writes
        error[bad-value]: client_write_share.us-west: -0.25 is not a share of the writes
    "#]],
    );
    check_scenario(
        &with("witness = [\"eu\"]\npreferred_leaders = [\"eu\"]"),
        expect![[r#"
            warning[ignored]: preferred_leaders: eu can't be preferred: a witness never leads
              help: name it in one of the lists only
            note[assumed]: witness: 25 % of the writes come from eu: its one server is taken to serve them, too
              help: set its share to 0 if it only votes
        "#]],
    );
    check_scenario(
        &with("preferred_leaders = [\"eu\", \"us-east\"]"),
        expect![[r#"
        note[slow-preference]: preferred_leaders: us-east leads the best layout; eu would cost 48.8 ms more (hier:eu=3,us-east=3,us-west=3)
          help: put the other regions into never_leader to insist
    "#]],
    );
}

#[test]
fn what_is_assumed_is_said() {
    check_scenario(
        "regions = [\"a\", \"b\", \"c\"]\nrtt.a = { b = 10, c = 12 }\nrtt.b.c = 14\nfsync = 2\n",
        expect![[r#"
            note[assumed]: client_write_share: every region is assumed to write as much as any other, 1/3
              help: say where the writes come from: it decides who should lead
            note[assumed]: require.survive_regions: 1 is assumed: so many regions may be lost, whichever
              help: set it to say what you need: 0 allows one region only
            note[assumed-tail]: rtt: 3 of 3 pairs have a median only; their p99 is assumed to be 1.06 times it
              help: give {p50, p99}, or plan from a live mesh
            note[assumed-tail]: fsync: no p99 is given: every one is taken to last 2 ms
              help: give {p50, p99}: the tail of a write comes from here
        "#]],
    );
}

#[test]
fn an_infeasible_scenario_says_what_would_have_to_give() {
    check_scenario(
        &with("").replace("survive_regions = 1", "survive_regions = 2"),
        expect![[r#"
        warning[infeasible]: require: to lose 2 regions and keep a majority takes voters in 5 regions; 3 regions and 9 voters are allowed
          help: least change: require.survive_regions from 2 to 1, then hier:us-east=3,us-west=3,eu=3 at 97.8 ms
    "#]],
    );
    check_scenario(
        &with("max_voters = 3").replace("= 1 }", "= 1, region_loss_plus_voters = 1 }"),
        expect![[r#"
            warning[infeasible]: require: none of 39 layouts (flat, hier, two) of at most 3 voters can lose any region and 1 more voter
              help: least change: require.region_loss_plus_voters from 1 to 0, then flat:us-east=1,us-west=1,eu=1 at 97.8 ms
        "#]],
    );
    check_scenario(
        &with("never_leader = [\"us-east\", \"us-west\", \"eu\"]"),
        expect![[r#"
        warning[infeasible]: require: no region may lead: every one is a witness or in never_leader
          help: least change: never_leader from us-east to not us-east, then hier:us-east=3,us-west=3,eu=3 at 97.8 ms
    "#]],
    );
    check_scenario(
        &with("max_per_region_default = 1").replace("= 1 }", "= 1, leader_region_min_voters = 2 }"),
        expect![[r#"
            warning[infeasible]: require: the leader's region must hold 2 voters, but no region that may lead may hold them
              help: least change: max_per_region_default from 1 to 2, then flat:us-east=2,us-west=2,eu=1 at 97.8 ms
        "#]],
    );
}

#[test]
fn matrices_are_checked_like_programs() {
    check_matrix(
        "from,to,rtt_ms\na,b,10\nb,a,13\na,c,50\nb,c,14\na,b,11\n",
        expect![[r#"
        warning[conflicting-pair]: line 6: a to b is given twice
          help: the later figure is used; remove the other
        warning[asymmetric-pair]: rtt a - b: 11.0 ms there, 13.0 ms back: 15 % apart
          help: the mean, 12.0 ms, is used; measure the pair again
        warning[triangle-violation]: rtt a - c: 50.0 ms direct, but 26.0 ms over b
          help: the direct figure is used; ask the provider about the route
    "#]],
    );
    check_matrix(
        "from,to,rtt_ms\na,b,210\nb,c,30\nc,a,31\n",
        expect![[r#"
        warning[triangle-violation]: rtt a - b: 210.0 ms direct, but 61.0 ms over c
          help: 3.4 times the detour: surely a fault of this figure; measure it again
    "#]],
    );
    check_matrix(
        "from,to,rtt_ms,p99\na,b,10,9\nb,c,ten,\nc,a,0,\na,,1,\n",
        expect![[r#"
            error[tail-below-median]: line 2: a to b: p99 9 ms lies below p50 10 ms
              help: swap the two, or leave the p99 out
            error[syntax]: line 3: ten is not a number of milliseconds
            error[bad-latency]: line 4: c to a: 0 ms is not a round-trip time
              help: give a number of milliseconds above 0 and up to 60000, or leave the pair out
            error[syntax]: line 5: column 2 is empty
        "#]],
    );
    check_matrix(
        "{\"rtt\":[{\"from\":\"a\",\"to\":\"b\",\"count\":12,\"p50_ms\":10,\"histogram\":\"x\"},{\"from\":1}]}",
        expect![[r#"
            error[syntax]: rtt[1]: invalid type: integer `1`, expected a string
            warning[few-samples]: rtt a - b: 12 samples say little about the p99
              help: let the mesh run until it has 1000
            warning[bad-histogram]: rtt a - b: the histogram is not base64: Invalid input length: 1
              help: the percentiles are used
        "#]],
    );
    check_matrix(
        "{\"data\":{\"a\":{\"b\":\"ten\",\"c\":-1},\"b\":3}}",
        expect![[r#"
            error[bad-latency]: data.a.b: "ten" is not a number of milliseconds
            error[bad-latency]: data.a.c: a to c: -1 ms is not a round-trip time
              help: give a number of milliseconds above 0 and up to 60000, or leave the pair out
            error[syntax]: data.b: not a table of regions
        "#]],
    );
}
