package org.apache.zookeeper.server;

/** Stands in for the class of this name, by which tests say how often servers write snapshots. */
public class SyncRequestProcessor {
    private SyncRequestProcessor() {
    }

    public static int getSnapCount() {
        return ZooKeeperServer.getSnapCount();
    }

    public static void setSnapCount(int requests) {
        System.setProperty(ZooKeeperServer.SNAP_COUNT, Integer.toString(requests));
    }
}
