package org.apache.zookeeper.server;

import java.io.File;
import java.io.IOException;
import java.net.InetSocketAddress;
import java.util.LinkedHashMap;
import java.util.Map;
import suites.MeridianProcess;

/** Stands in for the class of this name: a single server in a process of its own. */
public class ZooKeeperServer {
    public static final int DEFAULT_TICK_TIME = 3000;
    public static final String GLOBAL_OUTSTANDING_LIMIT = "zookeeper.globalOutstandingLimit";
    public static final String ENABLE_EAGER_ACL_CHECK = "zookeeper.enableEagerACLCheck";
    public static final String SKIP_ACL = "zookeeper.skipACL";
    public static final String ENFORCE_QUOTA = "zookeeper.enforceQuota";
    public static final String SASL_SUPER_USER = "zookeeper.superUser";
    public static final String SNAP_COUNT = "zookeeper.snapCount";
    public static final String GET_DATA_RESPONSE_CACHE_SIZE = "zookeeper.maxResponseCacheSize";
    public static final String GET_CHILDREN_RESPONSE_CACHE_SIZE = "zookeeper.maxGetChildrenResponseCacheSize";

    private static final int SNAP_COUNT_DEFAULT = 100000;

    private final File snapshots;
    private final File logs;
    private final int tickMs;
    private final Map<String, String> keys = new LinkedHashMap<>();
    private int sessionTimeoutMinMs = -1;
    private int sessionTimeoutMaxMs = -1;
    private int port;
    private MeridianProcess process;

    public ZooKeeperServer(File snapshots, File logs, int tickMs) {
        this.snapshots = snapshots;
        this.logs = logs;
        this.tickMs = tickMs;
    }

    void startAt(InetSocketAddress address, int connectionsPerAddress, boolean secure) throws IOException {
        keys.put("tickTime", Integer.toString(tickMs));
        keys.put("dataDir", snapshots.getPath());
        if (!logs.equals(snapshots)) {
            keys.put("dataLogDir", logs.getPath());
        }
        port = address.getPort();
        String key = secure ? "secureClientPort" : "clientPort";
        keys.put(key, Integer.toString(port));
        if (!address.getAddress().isAnyLocalAddress()) {
            keys.put(key + "Address", address.getAddress().getHostAddress().replaceFirst("%.*", ""));
        }
        keys.put("maxClientCnxns", Integer.toString(connectionsPerAddress));
        snapshots.mkdirs();
        process = new MeridianProcess(keys, new File(snapshots, "zoo.cfg"));
    }

    /** Sets a key of the zoo.cfg; a server that runs is started anew. */
    void change(String key, int value) {
        keys.put(key, Integer.toString(value));
        if (isRunning()) {
            process.stop();
            try {
                process = new MeridianProcess(keys, new File(snapshots, "zoo.cfg"));
                MeridianProcess.awaitService(port);
            } catch (IOException e) {
                throw new RuntimeException(e);
            }
        }
    }

    public static int getSnapCount() {
        return Integer.getInteger(SNAP_COUNT, SNAP_COUNT_DEFAULT);
    }

    public void shutdown() {
        if (process != null) {
            process.stop();
            process = null;
        }
    }

    public boolean isRunning() {
        return process != null && process.isAlive();
    }

    public int getClientPort() {
        return port;
    }

    public int getTickTime() {
        return tickMs;
    }

    public int getMinSessionTimeout() {
        return sessionTimeoutMinMs;
    }

    public void setMinSessionTimeout(int sessionTimeoutMinMs) {
        this.sessionTimeoutMinMs = sessionTimeoutMinMs;
        change("minSessionTimeout", sessionTimeoutMinMs);
    }

    public int getMaxSessionTimeout() {
        return sessionTimeoutMaxMs;
    }

    public void setMaxSessionTimeout(int sessionTimeoutMaxMs) {
        this.sessionTimeoutMaxMs = sessionTimeoutMaxMs;
        change("maxSessionTimeout", sessionTimeoutMaxMs);
    }

    /** The number is part of session ids, which the server makes. */
    public void setCreateSessionTrackerServerId(int number) {
    }

    /** None: it is in another process. */
    public ZKDatabase getZKDatabase() {
        return null;
    }
}
