//! The findings' exact words, as a user reads them.

use expect_test::{Expect, expect};
use meridian_topology::diagnostic::{Code, Diagnostic};
use meridian_topology::plan::{Objective, plan};
use meridian_topology::{matrix, report, scenario};

fn check_scenario(text: &str, expected: Expect) {
    let mut diagnostics = match scenario::parse(text).and_then(|scenario| plan(&scenario, Objective::Mean)) {
        Ok(plan) => plan.diagnostics,
        Err(diagnostics) => diagnostics,
    };
    scenario::Source::scenario("s.toml", text).locate(&mut diagnostics);
    check(&diagnostics, expected);
}

fn check_matrix(text: &str, expected: Expect) {
    let (matrix, mut diagnostics) = matrix::parse(text);
    scenario::Source::table("rtt.csv", text).locate(&mut diagnostics);
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
             --> s.toml:7:1
              |
            7 | max_voter = 5
              | ^^^^^^^^^
              help: did you mean max_voters?
            error[unknown-key]: failure.node_unavailable: no such key: node_unavailable
             --> s.toml:9:1
              |
            9 | node_unavailable = 1e-3
              | ^^^^^^^^^^^^^^^^
              help: did you mean node_unavail?
            error[unknown-key]: rtt.eu.us-east.p90: no such key: p90
              --> s.toml:11:21
               |
            11 | us-east = {p50 = 1, p90 = 2}
               |                     ^^^
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
             --> s.toml:7:14
              |
            7 | client_rtt = "fast"
              |              ^^^^^^
            error[bad-value]: designs: unknown variant `round`, expected one of `flat`, `hier`, `hierarchical`, `two`, `two-level`
             --> s.toml:9:11
              |
            9 | designs = ["round"]
              |           ^^^^^^^^^
            error[bad-value]: max_voters: invalid value: integer `-1`, expected usize
             --> s.toml:8:14
              |
            8 | max_voters = -1
              |              ^^
            error[bad-value]: witness: invalid type: integer `3`, expected a sequence
              --> s.toml:10:11
               |
            10 | witness = 3
               |           ^
        "#]],
    );
    check_scenario(
        &with("max_voters = 99\ndesigns = []\nfailure.node_unavail = 1.5\ndist.rtt_shift = 1"),
        expect![[r#"
            error[bad-value]: dist.rtt_shift: 1 is not in 0 to below 1
              --> s.toml:10:18
               |
            10 | dist.rtt_shift = 1
               |                  ^
            error[bad-value]: max_voters: 99 is not in 1 to 31
             --> s.toml:7:14
              |
            7 | max_voters = 99
              |              ^^
            error[bad-value]: designs: no design to consider
             --> s.toml:8:11
              |
            8 | designs = []
              |           ^^
              help: leave the key out to compare flat, hier and two
            error[bad-value]: failure.node_unavail: 1.5 is not in 0 to below 1
             --> s.toml:9:24
              |
            9 | failure.node_unavail = 1.5
              |                        ^^^
        "#]],
    );
    check_scenario(
        &with("client_rtt = -1\nfsync = {p50 = 8, p99 = 1}\ncoordinates.eu = [100, 0]"),
        expect![[r#"
            error[bad-latency]: client_rtt: -1 is not a time of 0 to 60000 ms
             --> s.toml:7:14
              |
            7 | client_rtt = -1
              |              ^^
            error[tail-below-median]: fsync: p99 1 ms lies below p50 8 ms
             --> s.toml:8:9
              |
            8 | fsync = {p50 = 8, p99 = 1}
              |         ^^^^^^^^^^^^^^^^^^
              help: swap the two, or leave the p99 out
            error[bad-value]: coordinates.eu: 100, 0 is not a latitude and a longitude in degrees
             --> s.toml:9:18
              |
            9 | coordinates.eu = [100, 0]
              |                  ^^^^^^^^
        "#]],
    );
    check_scenario(
        "{\"regions\": [\"a\",",
        expect![[r#"
            error[syntax]: line 1, column 17: EOF while parsing a value
             --> s.toml:1:17
              |
            1 | {"regions": ["a",
              |                 ^
        "#]],
    );
    check_scenario(
        "regions = [",
        expect![[r#"
            error[syntax]: line 1, column 12: invalid array; expected `]`
             --> s.toml:1:12
              |
            1 | regions = [
              |            ^
        "#]],
    );
    check_scenario(
        "[1]",
        expect![[r#"
            error[unknown-key]: 1: no such key: 1
             --> s.toml:1:2
              |
            1 | [1]
              |  ^
              help: known here: name, regions, coordinates, zones, providers, rtt, client_write_share, client_read_share, client_rtt, fsync, zone_rtt, dist, failure, designs, max_voters, max_per_region, max_per_region_default, witness, never_leader, preferred_leaders, must_vote, never_vote, weights, require, cost, traffic, session_timeout_ms, timing, current
        "#]],
    );
}

#[test]
fn unknown_regions_name_the_nearest_known_one() {
    check_scenario(
        &with("witness = [\"eu-west\"]\nnever_leader = [\"us-weast\"]\nmax_per_region.mars = 1"),
        expect![[r#"
            error[unknown-region]: witness: eu-west is not one of the regions
             --> s.toml:7:11
              |
            7 | witness = ["eu-west"]
              |           ^^^^^^^^^^^
              help: did you mean eu?
            error[unknown-region]: never_leader: us-weast is not one of the regions
             --> s.toml:8:16
              |
            8 | never_leader = ["us-weast"]
              |                ^^^^^^^^^^^^
              help: did you mean us-west?
            error[unknown-region]: max_per_region: mars is not one of the regions
             --> s.toml:9:1
              |
            9 | max_per_region.mars = 1
              | ^^^^^^^^^^^^^^
        "#]],
    );
}

#[test]
fn regions_have_names_that_files_and_hosts_can_have() {
    check_scenario(
        "regions = [\"a\", \"../b\", \"\", \"a\"]\nrtt.a = { b = 10 }\n",
        expect![[r#"
        error[bad-value]: regions[1]: "../b" is no name for a region
         --> s.toml:1:17
          |
        1 | regions = ["a", "../b", "", "a"]
          |                 ^^^^^^
          help: take letters, digits, and - _ . : between them; up to 64
        error[bad-value]: regions[2]: "" is no name for a region
         --> s.toml:1:25
          |
        1 | regions = ["a", "../b", "", "a"]
          |                         ^^
          help: take letters, digits, and - _ . : between them; up to 64
        error[duplicate-region]: regions: a is named twice
         --> s.toml:1:11
          |
        1 | regions = ["a", "../b", "", "a"]
          |           ^^^^^^^^^^^^^^^^^^^^^^
    "#]],
    );
}

#[test]
fn pairs_must_be_complete() {
    check_scenario(
        "regions = [\"a\", \"b\", \"c\"]\nrtt.a = { b = 10 }\n",
        expect![[r#"
            error[missing-pair]: rtt a - c: no round-trip time in either direction
             --> s.toml:2:1
              |
            2 | rtt.a = { b = 10 }
              | ^^^
              help: give rtt.a.c in the scenario, or a line a,c,<ms> in a table, or leave one of them out
            error[missing-pair]: rtt b - c: no round-trip time in either direction
             --> s.toml:2:1
              |
            2 | rtt.a = { b = 10 }
              | ^^^
              help: give rtt.b.c in the scenario, or a line b,c,<ms> in a table, or leave one of them out
        "#]],
    );
    check_scenario(
        "regions = [\"a\", \"b\", \"c\"]\nrtt.a = { b = 10, c = 12 }\n",
        expect![[r#"
            error[missing-pair]: rtt b - c: no round-trip time in either direction
             --> s.toml:2:1
              |
            2 | rtt.a = { b = 10, c = 12 }
              | ^^^
              help: give rtt.b.c in the scenario, or a line b,c,<ms> in a table, or leave one of them out
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
             --> s.toml:2:15
              |
            2 | rtt.a = { b = -10, c = nan }
              |               ^^^
              help: give a number of milliseconds above 0 and up to 60000, or leave the pair out
            error[bad-latency]: rtt.a.c: a to c: NaN ms is not a round-trip time
             --> s.toml:2:24
              |
            2 | rtt.a = { b = -10, c = nan }
              |                        ^^^
              help: give a number of milliseconds above 0 and up to 60000, or leave the pair out
            error[tail-below-median]: rtt.b.c: b to c: p99 9 ms lies below p50 10 ms
             --> s.toml:3:15
              |
            3 | rtt.b = { c = { p50 = 10, p99 = 9 } }
              |               ^^^^^^^^^^^^^^^^^^^^^
              help: swap the two, or leave the p99 out
        "#]],
    );
    let places = "coordinates = { us-east = [38.9, -77.4], us-west = [45.8, -119.7], eu = [53.3, -6.3] }\n";
    check_scenario(&with(places), expect![[""]]);
    check_scenario(
        &with(&places.replace("-119.7", "139.7")),
        expect![[r#"
            error[faster-than-light]: rtt us-east - us-west: 62.0 ms for 9896 km: light in vacuum needs 66.0 ms
             --> s.toml:5:27
              |
            5 | rtt.us-east = { us-west = { p50 = 62, p99 = 66 }, eu = { p50 = 75, p99 = 80 } }
              |                           ^^^^^^^^^^^^^^^^^^^^^^
              help: check the coordinates, and that the figure is a round trip in milliseconds
        "#]],
    );
    check_scenario(
        &with(&places.replace("-119.7", "-179.7")),
        expect![[r#"
            warning[faster-than-fibre]: rtt us-east - us-west: 62.0 ms for 7834 km: light in a straight fibre needs 76.7 ms
             --> s.toml:5:27
              |
            5 | rtt.us-east = { us-west = { p50 = 62, p99 = 66 }, eu = { p50 = 75, p99 = 80 } }
              |                           ^^^^^^^^^^^^^^^^^^^^^^
              help: check the coordinates and the figure
        "#]],
    );
}

#[test]
fn a_search_without_end_is_bounded_and_says_how_good_its_answer_is() {
    let text = with("max_voters = 31\nmax_per_region_default = 31\n");
    let mut scenario = scenario::parse(&text).unwrap();
    scenario.matrix = matrix::builtin("aws").unwrap();
    scenario.rtt.clear();
    scenario.restrict(matrix::builtin("aws").unwrap().regions());
    let plan = plan(&scenario, Objective::AfterLoss).unwrap();
    let bounded: Vec<Diagnostic> =
        plan.diagnostics.into_iter().filter(|finding| finding.code == Code::Bounded).collect();
    check(
        &bounded,
        expect![[r#"
            warning[bounded-search]: max_voters: of 78663679872 layouts a part was looked at: another may be better, by at most 12.7 ms (none is below 125.5 ms)
              help: lower max_voters or max_per_region_default, or list regions under never_vote, to have all looked at
        "#]],
    );
}

#[test]
fn shares_and_preferences_are_checked() {
    check_scenario(
        &with("").replace("us-east = 0.5", "us-east = 0.25"),
        expect![[r#"
            warning[share-sum]: client_write_share: the shares add up to 0.7500, not 1
             --> s.toml:3:22
              |
            3 | client_write_share = { us-east = 0.25, us-west = 0.25, eu = 0.25 }
              |                      ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
              help: they are scaled to one; correct them if a region is missing
        "#]],
    );
    check_scenario(
        &with("").replace("0.25", "-0.25"),
        expect![[r#"
            error[bad-value]: client_write_share.eu: -0.25 is not a share of the writes
             --> s.toml:3:61
              |
            3 | client_write_share = { us-east = 0.5, us-west = -0.25, eu = -0.25 }
              |                                                             ^^^^^
            error[bad-value]: client_write_share.us-west: -0.25 is not a share of the writes
             --> s.toml:3:49
              |
            3 | client_write_share = { us-east = 0.5, us-west = -0.25, eu = -0.25 }
              |                                                 ^^^^^
        "#]],
    );
    check_scenario(
        &with("witness = [\"eu\"]\npreferred_leaders = [\"eu\"]"),
        expect![[r#"
            warning[witness-leader]: preferred_leaders: eu can't be preferred: a witness never leads
             --> s.toml:8:21
              |
            8 | preferred_leaders = ["eu"]
              |                     ^^^^^^
              help: name it in one of the lists only
            note[assumed]: witness: 25 % of the writes come from eu: its one server is taken to serve them, too
             --> s.toml:7:11
              |
            7 | witness = ["eu"]
              |           ^^^^^^
              help: set its share to 0 if it only votes
        "#]],
    );
    check_scenario(
        &with("preferred_leaders = [\"eu\", \"us-east\"]"),
        expect![[r#"
            note[slow-preference]: preferred_leaders: us-east leads the best layout; eu would cost 48.8 ms more (hier:eu=3,us-east=3,us-west=3)
             --> s.toml:7:21
              |
            7 | preferred_leaders = ["eu", "us-east"]
              |                     ^^^^^^^^^^^^^^^^^
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
             --> s.toml:2:1
              |
            2 | rtt.a = { b = 10, c = 12 }
              | ^^^
              help: give {p50, p99}, or plan from a live mesh
            note[assumed-tail]: fsync: no p99 is given: every one is taken to last 2 ms
             --> s.toml:4:9
              |
            4 | fsync = 2
              |         ^
              help: give {p50, p99}: the tail of a write comes from here
        "#]],
    );
}

#[test]
fn an_infeasible_scenario_says_what_would_have_to_give() {
    check_scenario(
        &with("").replace("survive_regions = 1", "survive_regions = 2"),
        expect![[r#"
            warning[infeasible]: require: to lose any 2 regions and keep a majority takes voters in 5 regions; 3 regions and 9 voters are allowed
             --> s.toml:4:11
              |
            4 | require = { survive_regions = 2 }
              |           ^^^^^^^^^^^^^^^^^^^^^^^
              help: the least relaxation is require.survive_regions from 2 to 1: then hier:us-east=3,us-west=3,eu=3 at 97.8 ms
        "#]],
    );
    check_scenario(
        &with("max_voters = 3").replace("= 1 }", "= 1, region_loss_plus_voters = 1 }"),
        expect![[r#"
            warning[infeasible]: require: none of 39 layouts (flat, hier, two) of at most 3 voters can lose any region and 1 more voter
             --> s.toml:4:11
              |
            4 | require = { survive_regions = 1, region_loss_plus_voters = 1 }
              |           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
              help: the least relaxation is require.region_loss_plus_voters from 1 to 0: then flat:us-east=1,us-west=1,eu=1 at 97.8 ms
        "#]],
    );
    check_scenario(
        &with("never_leader = [\"us-east\", \"us-west\", \"eu\"]"),
        expect![[r#"
            warning[infeasible]: require: no region may lead: every one is a witness or in never_leader
             --> s.toml:4:11
              |
            4 | require = { survive_regions = 1 }
              |           ^^^^^^^^^^^^^^^^^^^^^^^
              help: the least relaxation is never_leader from us-east to not us-east: then hier:us-east=3,us-west=3,eu=3 at 97.8 ms
        "#]],
    );
    check_scenario(
        &with("max_per_region_default = 1").replace("= 1 }", "= 1, leader_region_min_voters = 2 }"),
        expect![[r#"
            warning[infeasible]: require: the leader's region must hold 2 voters, but no region that may lead may hold them
             --> s.toml:4:11
              |
            4 | require = { survive_regions = 1, leader_region_min_voters = 2 }
              |           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
              help: the least relaxation is max_per_region_default from 1 to 2: then flat:us-east=2,us-west=2,eu=1 at 97.8 ms
        "#]],
    );
}

#[test]
fn matrices_are_checked_like_programs() {
    check_matrix(
        "from,to,rtt_ms\na,b,10\nb,a,13\na,c,50\nb,c,14\na,b,11\n",
        expect![[r#"
            warning[conflicting-pair]: line 6: a to b is given twice
             --> rtt.csv:6:1
              |
            6 | a,b,11
              | ^^^^^^
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
             --> rtt.csv:2:1
              |
            2 | a,b,10,9
              | ^^^^^^^^
              help: swap the two, or leave the p99 out
            error[syntax]: line 3: ten is not a number of milliseconds
             --> rtt.csv:3:1
              |
            3 | b,c,ten,
              | ^^^^^^^^
            error[bad-latency]: line 4: c to a: 0 ms is not a round-trip time
             --> rtt.csv:4:1
              |
            4 | c,a,0,
              | ^^^^^^
              help: give a number of milliseconds above 0 and up to 60000, or leave the pair out
            error[syntax]: line 5: column 2 is empty
             --> rtt.csv:5:1
              |
            5 | a,,1,
              | ^^^^^
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

#[test]
fn designs_that_buy_less_than_they_seem_to_are_named() {
    let two_regions = "regions = [\"a\", \"b\"]\nclient_write_share = { a = 0.5, b = 0.5 }\n\
                       rtt.a.b = { p50 = 10, p99 = 11 }\nrequire.survive_regions = 0\n";
    check_scenario(
        two_regions,
        expect![[r#"
        warning[two-groups]: designs: hier and two over two regions is a quorum of both: the loss of either stops writes
          help: add a third region; a witness with one voter is enough
    "#]],
    );
    check_scenario(
        &with("weights = { us-east = 1, eu = 0 }\nrequire = { survive_regions = 0 }").replacen(
            "require = { survive_regions = 1 }\n",
            "",
            1,
        ),
        expect![[r#"
            warning[two-groups]: designs: hier and two over two regions is a quorum of both: the loss of either stops writes
              help: add a third region; a witness with one voter is enough
            warning[zero-weight]: weights.eu: servers of weight 0 have no vote: eu is no group of the quorum; what is left are two groups
             --> s.toml:6:31
              |
            6 | weights = { us-east = 1, eu = 0 }
              |                               ^
              help: give it a weight of 1, or make its servers observers
        "#]],
    );
    check_scenario(
        &with("max_voters = 4"),
        expect![[r#"
        warning[even-voters]: max_voters: 4 voters survive no more than 3, and wait for one acknowledgement more
         --> s.toml:7:14
          |
        7 | max_voters = 4
          |              ^
          help: 3 or 5 voters
    "#]],
    );
    check_scenario(
        &with(
            "witness = [\"us-east\"]\n[current]\ndesign = \"flat\"\nleader = \"us-east\"\nvoters = { us-east = 1, us-west = 2, eu = 1 }",
        ),
        expect![[r#"
            warning[even-voters]: current.voters: 4 voters survive no more than 3, and wait for one acknowledgement more
              --> s.toml:11:10
               |
            11 | voters = { us-east = 1, us-west = 2, eu = 1 }
               |          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
              help: 3 or 5 voters
            warning[witness-leader]: current.leader: us-east leads, and is a witness: every write waits for it
              --> s.toml:10:10
               |
            10 | leader = "us-east"
               |          ^^^^^^^^^
              help: move the leader to a region that serves clients
            note[assumed]: witness: 50 % of the writes come from us-east: its one server is taken to serve them, too
             --> s.toml:7:11
              |
            7 | witness = ["us-east"]
              |           ^^^^^^^^^^^
              help: set its share to 0 if it only votes
        "#]],
    );
    check_scenario(
        &with("[current]\ndesign = \"hier\"\nleader = \"us-east\"\nvoters = { us-east = 3, us-west = 3 }"),
        expect![[r#"
            warning[two-groups]: current.voters: hier over two regions is a quorum of both: the loss of either stops writes
              --> s.toml:10:10
               |
            10 | voters = { us-east = 3, us-west = 3 }
               |          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^
              help: add a third region; a witness with one voter is enough
        "#]],
    );
}

#[test]
fn session_defaults_that_cap_what_is_wanted_are_named() {
    let current =
        "[current]\ndesign = \"flat\"\nleader = \"us-east\"\nvoters = { us-east = 1, us-west = 1, eu = 1 }\n";
    check_scenario(
        &with(&format!("session_timeout_ms = 60000\n{current}timing = {{ tickTime = 200 }}")),
        expect![[r#"
            warning[session-cap]: current.timing: clients ask for 60000 ms and get 4000 ms: the default of 20 ticks of 200 ms caps them
              --> s.toml:12:10
               |
            12 | timing = { tickTime = 200 }
               |          ^^^^^^^^^^^^^^^^^^
              help: set maxSessionTimeout to 60000 or more
        "#]],
    );
    check_scenario(
        &with(&format!("session_timeout_ms = 60000\n{current}timing = {{ maxSessionTimeout = 30000 }}")),
        expect![[r#"
            warning[session-cap]: current.timing: clients ask for 60000 ms and get 30000 ms: maxSessionTimeout caps them
              --> s.toml:12:10
               |
            12 | timing = { maxSessionTimeout = 30000 }
               |          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
              help: set maxSessionTimeout to 60000 or more
            warning[unfit]: current.timing.maxSessionTimeout: 30000 ms is too short: clients ask for it
              --> s.toml:12:32
               |
            12 | timing = { maxSessionTimeout = 30000 }
               |                                ^^^^^
              help: set it to 60000 or more
        "#]],
    );
    check_scenario(
        &with(&format!("session_timeout_ms = 30000\n{current}timing = {{ maxSessionTimeout = 30000 }}")),
        expect![[""]],
    );
}

#[test]
fn times_may_be_histograms_that_are_checked() {
    check_scenario(
        &with("fsync = { samples = [1, 1, 2, 9] }\nzone_rtt = { histogram = [[0.5, 90], [2, 10]] }"),
        expect![[""]],
    );
    check_scenario(
        &with("fsync = { histogram = \"HISTF\" }\nzone_rtt = { samples = [] }"),
        expect![[r#"
        error[bad-value]: fsync: the histogram is not base64: Invalid input length: 5
         --> s.toml:7:9
          |
        7 | fsync = { histogram = "HISTF" }
          |         ^^^^^^^^^^^^^^^^^^^^^^^
        error[bad-value]: zone_rtt: the histogram is empty
         --> s.toml:8:12
          |
        8 | zone_rtt = { samples = [] }
          |            ^^^^^^^^^^^^^^^^
    "#]],
    );
    check_scenario(
        &with("fsync = { p50 = 4, samples = [1, 1, 2, 9] }\nzone_rtt = { p5 = 1 }"),
        expect![[r#"
            error[unknown-key]: zone_rtt.p5: no such key: p5
             --> s.toml:8:14
              |
            8 | zone_rtt = { p5 = 1 }
              |              ^^
              help: did you mean p50?
        "#]],
    );
    check_scenario(
        &with("fsync = { p50 = 4, samples = [1, 1, 2, 9] }\nzone_rtt = [1]"),
        expect![[r#"
        error[bad-value]: zone_rtt: [1] is not a time; expected a number of milliseconds, {p50, p99}, {histogram} or {samples}
         --> s.toml:8:12
          |
        8 | zone_rtt = [1]
          |            ^^^
    "#]],
    );
}

#[test]
fn failures_zones_prices_and_ceilings_are_checked() {
    check_scenario(
        &with(
            "failure.regions.us-weast = { region_unavail = 1e-4 }\nfailure.regions.eu = { zone_unavail = 2 }\n\
             zones.eu = 0\ncost.voter = -1\nrequire.max_cost = nan\ntiming.heartbeat_ms = 0\n\
             must_vote = [\"eu\"]\nnever_vote = [\"eu\"]\n\
             failure.common_causes = [{ name = \"cable\", unavail = 1, regions = [\"us-east\", \"us\"] }]",
        )
        .replacen("require = { survive_regions = 1 }\n", "", 1),
        expect![[r#"
            error[unknown-region]: failure.regions: us-weast is not one of the regions
             --> s.toml:6:9
              |
            6 | failure.regions.us-weast = { region_unavail = 1e-4 }
              |         ^^^^^^^
              help: did you mean us-west?
            error[unknown-region]: failure.common_causes[0].regions: us is not one of the regions
              --> s.toml:14:26
               |
            14 | failure.common_causes = [{ name = "cable", unavail = 1, regions = ["us-east", "us"] }]
               |                          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
              help: did you mean us-east?
            error[bad-value]: must_vote: eu must hold a voter, and must not: see never_vote, weights and max_per_region
              --> s.toml:12:13
               |
            12 | must_vote = ["eu"]
               |             ^^^^^^
              help: take it out of one of them
            error[bad-value]: cost.voter: -1 is less than nothing
             --> s.toml:9:14
              |
            9 | cost.voter = -1
              |              ^^
            error[bad-value]: timing.heartbeat_ms: 0 is not above zero
              --> s.toml:11:23
               |
            11 | timing.heartbeat_ms = 0
               |                       ^
            error[bad-value]: failure.regions.eu.zone_unavail: 2 is not in 0 to below 1
             --> s.toml:7:39
              |
            7 | failure.regions.eu = { zone_unavail = 2 }
              |                                       ^
            error[bad-value]: failure.common_causes[0].unavail: 1 is not in 0 to below 1
              --> s.toml:14:26
               |
            14 | failure.common_causes = [{ name = "cable", unavail = 1, regions = ["us-east", "us"] }]
               |                          ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
            error[bad-value]: zones.eu: 0 zones; a region has 1 to 26
             --> s.toml:8:12
              |
            8 | zones.eu = 0
              |            ^
            warning[two-groups]: designs: hier and two over two regions is a quorum of both: the loss of either stops writes
              help: add a third region; a witness with one voter is enough
        "#]],
    );
    check_scenario(
        &with(
            "failure.regions.eu = { region = 1e-4 }\nfailure.common_causes = [{ nam = \"x\" }]\ncurrent.leadr = \"eu\"",
        ),
        expect![[r#"
            error[unknown-key]: current.leadr: no such key: leadr
             --> s.toml:9:9
              |
            9 | current.leadr = "eu"
              |         ^^^^^
              help: did you mean leader?
            error[unknown-key]: failure.regions.eu.region: no such key: region
             --> s.toml:7:24
              |
            7 | failure.regions.eu = { region = 1e-4 }
              |                        ^^^^^^
              help: did you mean region_unavail?
            error[unknown-key]: failure.common_causes[0].nam: no such key: nam
             --> s.toml:8:26
              |
            8 | failure.common_causes = [{ nam = "x" }]
              |                          ^^^^^^^^^^^^^
              help: did you mean name?
        "#]],
    );
    check_scenario(
        &with("client_read_share = { us-east = 0.5, us-west = 0.2 }\nfailure.provider_unavail = 1e-5"),
        expect![[r#"
            warning[share-sum]: client_read_share: the shares add up to 0.7000, not 1
             --> s.toml:7:21
              |
            7 | client_read_share = { us-east = 0.5, us-west = 0.2 }
              |                     ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
              help: they are scaled to one; correct them if a region is missing
        "#]],
    );
}

#[test]
fn a_bound_that_no_layout_meets_is_raised_as_little_as_possible() {
    let bounded =
        |bounds: &str| with("").replace("survive_regions = 1", &format!("survive_regions = 1, {bounds}"));
    check_scenario(
        &bounded("max_mean_write_ms = 80"),
        expect![[r#"
            warning[infeasible]: require: none of 132 layouts (flat, hier, two) of at most 9 voters can lose any region and write on average within 80 ms
             --> s.toml:4:11
              |
            4 | require = { survive_regions = 1, max_mean_write_ms = 80 }
              |           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
              help: the least relaxation is require.survive_regions from 1 to 0: then flat:us-east=1 at 35.8 ms
        "#]],
    );
    check_scenario(&bounded("max_write_ms = { eu = 100 }"), expect![[""]]);
    check_scenario(
        &bounded("max_after_loss_ms = 150, max_worst_write_ms = 120"),
        expect![[r#"
            warning[infeasible]: require: none of 132 layouts (flat, hier, two) of at most 9 voters can lose any region and write in every region within 120 ms and write after the loss of any region within 150 ms
             --> s.toml:4:11
              |
            4 | require = { survive_regions = 1, max_after_loss_ms = 150, max_worst_write_ms = 120 }
              |           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
              help: the least relaxation is require.max_after_loss_ms and require.max_worst_write_ms from 150 and 120 to 196.5 and 138.5: then hier:us-east=3,us-west=3,eu=3 at 97.8 ms
        "#]],
    );
    check_scenario(
        &format!("cost.voter = 100\n{}", bounded("max_cost = 250")),
        expect![[r#"
            warning[infeasible]: require: none of 132 layouts (flat, hier, two) of at most 9 voters can lose any region and cost a month within 250
             --> s.toml:5:11
              |
            5 | require = { survive_regions = 1, max_cost = 250 }
              |           ^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^^
              help: the least relaxation is require.max_cost from 250 to 300: then flat:us-east=1,us-west=1,eu=1 at 97.8 ms
        "#]],
    );
}
