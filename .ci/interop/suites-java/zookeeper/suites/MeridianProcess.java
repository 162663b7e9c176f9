package suites;

import java.io.BufferedReader;
import java.io.File;
import java.io.IOException;
import java.io.InputStream;
import java.io.InputStreamReader;
import java.net.InetSocketAddress;
import java.net.Socket;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.Set;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.TimeUnit;
import org.apache.zookeeper.server.quorum.QuorumPeerConfig;

/**
 * A server in a process of its own, for tests that would start ZooKeeper's within theirs. SUITES_SERVER names the
 * binary. What the tests say by system properties becomes part of its zoo.cfg.
 */
public final class MeridianProcess {
    static final int STOP_S = 10;
    static final int WORD_MS = 2000;
    static final int SERVICE_TRIES = 300;
    static final int SERVICE_TRY_MS = 100;

    /** System properties that are for servers; all begin with "zookeeper." there, and some without it as well. */
    static final List<String> PROPERTIES = List.of(
        "4lw.commands.whitelist", "admin.enableServer", "admin.serverPort",
        "DigestAuthenticationProvider.superDigest", "DigestAuthenticationProvider.enabled",
        "DigestAuthenticationProvider.digestAlg", "X509AuthenticationProvider.superUser", "superUser", "ensembleAuthName",
        "skipACL", "enforceQuota", "globalOutstandingLimit", "snapCount", "maxCnxns", "jute.maxbuffer",
        "extendedTypesEnabled", "emulate353TTLNodes", "readonlymode.enabled", "reconfigEnabled", "throttled_op_wait_time",
        "sessionRequireClientSASLAuth", "enforce.auth.enabled", "enforce.auth.schemes", "localSessionsEnabled",
        "localSessionsUpgradingEnabled", "znode.container.checkIntervalMs", "znode.container.maxPerMinute",
        "znode.container.maxNeverUsedIntervalMs", "request_throttle_max_requests", "client.portUnification",
        "forceSync", "leaderServes", "ssl.keyStore.location", "ssl.keyStore.password", "ssl.keyStore.type",
        "ssl.trustStore.location", "ssl.trustStore.password", "ssl.trustStore.type", "ssl.clientAuth",
        "nio.sessionlessCnxnTimeout", "netty.server.earlyDropSecureConnectionHandshakes", "audit.enable", "enableEagerACLCheck");

    private static final Set<Process> RUNNING = ConcurrentHashMap.newKeySet();

    static {
        Runtime.getRuntime().addShutdownHook(new Thread(() -> RUNNING.forEach(Process::destroyForcibly)));
    }

    private final Process process;

    /** Starts a server with these keys of a zoo.cfg, which is written to `config`. */
    public MeridianProcess(Map<String, String> keys, File config) throws IOException {
        Map<String, String> all = new LinkedHashMap<>();
        for (String name : PROPERTIES) {
            for (String property : List.of(name, "zookeeper." + name)) {
                if (System.getProperty(property) != null) {
                    all.put(name, System.getProperty(property));
                }
            }
        }
        if (QuorumPeerConfig.isReconfigEnabled()) {
            all.put("reconfigEnabled", "true");
        }
        all.putAll(keys);
        File users = Users.write(config.getAbsoluteFile().getParentFile());
        if (users != null) {
            all.put("java.security.auth.login.config", users.getPath());
        }
        if (all.containsKey("secureClientPort") || "true".equals(all.get("client.portUnification"))) {
            Pem.replaceStores(all, config.getAbsoluteFile().getParentFile());
        } else {
            all.keySet().removeIf(key -> key.startsWith("ssl."));
        }
        StringBuilder text = new StringBuilder();
        all.forEach((key, value) -> text.append(key).append('=').append(value).append('\n'));
        Files.writeString(config.toPath(), text);
        File log = new File(System.getProperty("suites.server.log", "servers.log"));
        process = new ProcessBuilder(System.getenv("SUITES_SERVER"), "server", "--config", config.getPath())
            .redirectErrorStream(true).redirectOutput(ProcessBuilder.Redirect.appendTo(log)).start();
        RUNNING.add(process);
    }

    /** The keys of a zoo.cfg, with those of the dynamic one that it names. */
    public static Map<String, String> read(File config) throws IOException {
        Properties properties = new Properties();
        try (BufferedReader reader = Files.newBufferedReader(config.toPath())) {
            properties.load(reader);
        }
        Map<String, String> keys = new LinkedHashMap<>();
        properties.stringPropertyNames().forEach(name -> keys.put(name, properties.getProperty(name).trim()));
        return keys;
    }

    public boolean isAlive() {
        return process.isAlive();
    }

    public void waitFor() throws InterruptedException {
        process.waitFor();
    }

    public void stop() {
        process.destroy();
        try {
            if (!process.waitFor(STOP_S, TimeUnit.SECONDS)) {
                process.destroyForcibly().waitFor();
            }
        } catch (InterruptedException e) {
            process.destroyForcibly();
            Thread.currentThread().interrupt();
        }
        RUNNING.remove(process);
    }

    /** Waits until a server serves, but not for ever. */
    public static void awaitService(int port) {
        for (int i = 0; i < SERVICE_TRIES && !word(port, "srvr").contains("Mode: "); i++) {
            try {
                Thread.sleep(SERVICE_TRY_MS);
            } catch (InterruptedException e) {
                Thread.currentThread().interrupt();
            }
        }
    }

    /** The answer to a four-letter word; empty if there is none. */
    public static String word(int port, String word) {
        try (Socket socket = new Socket()) {
            socket.setSoTimeout(WORD_MS);
            socket.connect(new InetSocketAddress("127.0.0.1", port), WORD_MS);
            socket.getOutputStream().write(word.getBytes(StandardCharsets.US_ASCII));
            InputStream in = socket.getInputStream();
            return new BufferedReader(new InputStreamReader(in)).lines().reduce("", (all, line) -> all + line + "\n");
        } catch (IOException | java.io.UncheckedIOException e) {
            return "";
        }
    }
}
