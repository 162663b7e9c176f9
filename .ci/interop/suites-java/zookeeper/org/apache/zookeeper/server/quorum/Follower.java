package org.apache.zookeeper.server.quorum;

/** Stands in for the class of this name, of which tests ask whether there is one. */
public class Follower {
    Follower() {
    }
}
