package org.apache.zookeeper.server.quorum;

import java.io.File;
import java.io.IOException;

/** Stands in for the class of this name: a server in a process of its own, from the zoo.cfg that a test wrote. */
public class QuorumPeerMain {
    protected QuorumPeer quorumPeer;

    protected void initializeAndRun(String[] arguments) throws QuorumPeerConfig.ConfigException, IOException {
        quorumPeer = new QuorumPeer(new File(arguments[0]));
        quorumPeer.start();
        try {
            quorumPeer.join();
        } catch (InterruptedException e) {
            quorumPeer.shutdown();
        }
    }
}
