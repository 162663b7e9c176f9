package org.apache.zookeeper.server.quorum;

import java.io.File;
import java.io.IOException;
import java.io.StringReader;
import java.net.InetSocketAddress;
import java.nio.file.Files;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.Map;
import java.util.Properties;
import java.util.regex.Matcher;
import java.util.regex.Pattern;
import java.util.stream.Collectors;
import org.apache.zookeeper.server.quorum.flexible.QuorumVerifier;
import suites.MeridianProcess;

/** Stands in for the class of this name: a server of an ensemble in a process of its own. */
public class QuorumPeer extends Thread {
    public static final String CONFIG_KEY_KERBEROS_CANONICALIZE_HOST_NAMES = "zookeeper.kerberos.canonicalizeHostNames";
    public static final String CONFIG_KEY_MULTI_ADDRESS_ENABLED = "zookeeper.multiAddress.enabled";
    public static final String CONFIG_DEFAULT_MULTI_ADDRESS_ENABLED = "false";
    public static final String CONFIG_KEY_MULTI_ADDRESS_REACHABILITY_CHECK_TIMEOUT_MS =
        "zookeeper.multiAddress.reachabilityCheckTimeoutMs";
    public static final String CONFIG_KEY_MULTI_ADDRESS_REACHABILITY_CHECK_ENABLED =
        "zookeeper.multiAddress.reachabilityCheckEnabled";
    private static final int ELECTION_ALGORITHM = 3;
    private static final int WATCH_MS = 10;
    private static final Pattern MODE = Pattern.compile("^Mode: (\\S+)", Pattern.MULTILINE);

    public enum LearnerType { PARTICIPANT, OBSERVER }

    public enum ServerState { LOOKING, FOLLOWING, LEADING, OBSERVING }

    public static final class AddressTuple {
        public final InetSocketAddress quorumAddr;
        public final InetSocketAddress electionAddr;
        public final InetSocketAddress clientAddr;

        public AddressTuple(InetSocketAddress quorumAddr, InetSocketAddress electionAddr, InetSocketAddress clientAddr) {
            this.quorumAddr = quorumAddr;
            this.electionAddr = electionAddr;
            this.clientAddr = clientAddr;
        }
    }

    /** One of the ensemble's servers, as a line of the configuration names it. */
    public static class QuorumServer {
        private static final Pattern LINE = Pattern.compile(
            "(?<host>\\[[^]]+\\]|[^:]+):(?<port>\\d+):(?<election>\\d+)(:(?<role>\\w+))?(;((?<clientHost>.+):)?(?<client>\\d+))?",
            Pattern.CASE_INSENSITIVE);

        public long id;
        public MultipleAddresses addr;
        public MultipleAddresses electionAddr;
        public InetSocketAddress clientAddr;
        public LearnerType type = LearnerType.PARTICIPANT;

        public QuorumServer(long id, InetSocketAddress addr, InetSocketAddress electionAddr, InetSocketAddress clientAddr,
            LearnerType type) {
            this.id = id;
            this.addr = new MultipleAddresses(addr);
            this.electionAddr = electionAddr == null ? new MultipleAddresses() : new MultipleAddresses(electionAddr);
            this.clientAddr = clientAddr;
            this.type = type;
        }

        public QuorumServer(long id, InetSocketAddress addr, InetSocketAddress electionAddr, InetSocketAddress clientAddr) {
            this(id, addr, electionAddr, clientAddr, LearnerType.PARTICIPANT);
        }

        public QuorumServer(long id, InetSocketAddress addr, InetSocketAddress electionAddr) {
            this(id, addr, electionAddr, null, LearnerType.PARTICIPANT);
        }

        public QuorumServer(long id, String line) throws QuorumPeerConfig.ConfigException {
            Matcher matcher = LINE.matcher(line.trim());
            if (!matcher.matches()) {
                throw new QuorumPeerConfig.ConfigException("not a server's line: " + line);
            }
            this.id = id;
            String host = matcher.group("host");
            addr = new MultipleAddresses(new InetSocketAddress(host, Integer.parseInt(matcher.group("port"))));
            electionAddr = new MultipleAddresses(new InetSocketAddress(host, Integer.parseInt(matcher.group("election"))));
            if (matcher.group("role") != null) {
                type = LearnerType.valueOf(matcher.group("role").toUpperCase());
            }
            if (matcher.group("client") != null) {
                String clientHost = matcher.group("clientHost") == null ? "0.0.0.0" : matcher.group("clientHost");
                clientAddr = new InetSocketAddress(clientHost, Integer.parseInt(matcher.group("client")));
            }
        }

        @Override
        public boolean equals(Object other) {
            return other instanceof QuorumServer && ((QuorumServer) other).id == id && toString().equals(other.toString());
        }

        @Override
        public int hashCode() {
            return Long.hashCode(id);
        }

        @Override
        public String toString() {
            InetSocketAddress own = addr.getOne();
            String line = own.getHostString() + ":" + own.getPort() + ":" + electionAddr.getOne().getPort() + ":"
                + type.name().toLowerCase();
            return clientAddr == null ? line : line + ";" + clientAddr.getHostString() + ":" + clientAddr.getPort();
        }
    }

    /** What the server is, as long as it is that; tests compare them with null. */
    public volatile Leader leader;
    public volatile Follower follower;
    public volatile Observer observer;

    private final Map<Long, QuorumServer> servers;
    private final Map<String, String> keys = new LinkedHashMap<>();
    private final File directory;
    private final long number;
    private final boolean reconfigEnabled = QuorumPeerConfig.isReconfigEnabled();
    private int clientPort;
    private MeridianProcess process;

    public QuorumPeer(Map<Long, QuorumServer> servers, File snapshots, File logs, int clientPort, int electionAlgorithm,
        long number, int tickMs, int initLimit, int syncLimit, int connectLimit) throws IOException {
        super("server " + number);
        this.servers = servers;
        this.number = number;
        this.clientPort = clientPort;
        directory = snapshots;
        keys.put("tickTime", Integer.toString(tickMs));
        keys.put("initLimit", Integer.toString(initLimit));
        keys.put("syncLimit", Integer.toString(syncLimit));
        keys.put("dataDir", snapshots.getPath());
        keys.put("clientPort", Integer.toString(clientPort));
    }

    /** The file of the oracle, which decides for ensembles of two, goes unheeded. */
    public QuorumPeer(Map<Long, QuorumServer> servers, File snapshots, File logs, int clientPort, int electionAlgorithm,
        long number, int tickMs, int initLimit, int syncLimit, int connectLimit, String oracle) throws IOException {
        this(servers, snapshots, logs, clientPort, electionAlgorithm, number, tickMs, initLimit, syncLimit, connectLimit);
    }

    /** A server with a zoo.cfg of its own. */
    QuorumPeer(File config) throws IOException, QuorumPeerConfig.ConfigException {
        super("server of " + config);
        keys.putAll(MeridianProcess.read(config));
        String dynamic = keys.remove("dynamicConfigFile");
        if (dynamic != null) {
            keys.putAll(MeridianProcess.read(new File(dynamic)));
        }
        servers = new HashMap<>();
        for (Map.Entry<String, String> entry : keys.entrySet()) {
            if (entry.getKey().startsWith("server.")) {
                long id = Long.parseLong(entry.getKey().substring("server.".length()));
                servers.put(id, new QuorumServer(id, entry.getValue()));
            }
        }
        directory = new File(keys.get("dataDir"));
        File own = new File(directory, "myid");
        number = own.exists() ? Long.parseLong(Files.readString(own.toPath()).trim()) : 1;
        if (keys.containsKey("clientPort")) {
            clientPort = Integer.parseInt(keys.get("clientPort"));
        } else if (servers.containsKey(number) && servers.get(number).clientAddr != null) {
            clientPort = servers.get(number).clientAddr.getPort();
        }
    }

    @Override
    public synchronized void start() {
        try {
            Files.writeString(new File(directory, "myid").toPath(), Long.toString(number));
            for (QuorumServer server : servers.values()) {
                keys.put("server." + server.id, server.toString());
            }
            process = new MeridianProcess(keys, new File(directory, "server.cfg"));
        } catch (IOException e) {
            throw new RuntimeException(e);
        }
        super.start();
    }

    @Override
    public void run() {
        try {
            while (process.isAlive()) {
                ServerState state = getPeerState();
                leader = state == ServerState.LEADING ? new Leader() : null;
                follower = state == ServerState.FOLLOWING ? new Follower() : null;
                observer = state == ServerState.OBSERVING ? new Observer() : null;
                Thread.sleep(WATCH_MS);
            }
        } catch (InterruptedException e) {
            process.stop();
        }
        leader = null;
        follower = null;
        observer = null;
    }

    public void shutdown() {
        if (process != null) {
            process.stop();
        }
    }

    public ServerState getPeerState() {
        switch (mode()) {
            case "leader":
                return ServerState.LEADING;
            case "follower":
                return ServerState.FOLLOWING;
            case "observer":
                return ServerState.OBSERVING;
            default:
                return ServerState.LOOKING;
        }
    }

    public String getServerState() {
        switch (getPeerState()) {
            case LEADING:
                return "leading";
            case FOLLOWING:
                return "following";
            case OBSERVING:
                return "observing";
            default:
                return "leaderelection";
        }
    }

    private String mode() {
        if (process == null || !process.isAlive()) {
            return "";
        }
        Matcher matcher = MODE.matcher(MeridianProcess.word(clientPort, "srvr"));
        return matcher.find() ? matcher.group(1) : "";
    }

    /** Servers elect among themselves. */
    public Election getElectionAlg() {
        return null;
    }

    public boolean isRunning() {
        return process != null && process.isAlive();
    }

    public boolean isReconfigEnabled() {
        return reconfigEnabled;
    }

    public int getClientPort() {
        return clientPort;
    }

    public InetSocketAddress getClientAddress() {
        return new InetSocketAddress("127.0.0.1", clientPort);
    }

    public MultipleAddresses getQuorumAddress() {
        return servers.get(number).addr;
    }

    public MultipleAddresses getElectionAddress() {
        return servers.get(number).electionAddr;
    }

    public LearnerType getLearnerType() {
        return servers.get(number).type;
    }

    public void setLearnerType(LearnerType type) {
        servers.get(number).type = type;
    }

    /** The server's number, not the thread's. */
    @Override
    public long getId() {
        return number;
    }

    public boolean viewContains(Long number) {
        return servers.containsKey(number);
    }

    /** A configuration as a client reads it. */
    public QuorumVerifier configFromString(String text) throws IOException, QuorumPeerConfig.ConfigException {
        Properties properties = new Properties();
        properties.load(new StringReader(text));
        return QuorumPeerConfig.parseDynamicConfig(properties, ELECTION_ALGORITHM, false, false, null);
    }

    public Map<Long, QuorumServer> getView() {
        return servers;
    }

    public Map<Long, QuorumServer> getVotingView() {
        return servers.entrySet().stream().filter(entry -> entry.getValue().type == LearnerType.PARTICIPANT)
            .collect(Collectors.toMap(Map.Entry::getKey, Map.Entry::getValue));
    }

    public int getTickTime() {
        return Integer.parseInt(keys.getOrDefault("tickTime", "3000"));
    }

    public int getInitLimit() {
        return Integer.parseInt(keys.getOrDefault("initLimit", "10"));
    }

    public int getSyncLimit() {
        return Integer.parseInt(keys.getOrDefault("syncLimit", "5"));
    }

    public void enableLocalSessions(boolean enabled) {
        keys.put("localSessionsEnabled", Boolean.toString(enabled));
    }

    public void enableLocalSessionsUpgrading(boolean enabled) {
        keys.put("localSessionsUpgradingEnabled", Boolean.toString(enabled));
    }
}
