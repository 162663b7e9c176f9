package org.apache.zookeeper.server;

import java.io.IOException;
import java.net.InetSocketAddress;

/** Stands in for the class of this name: holds where a server of its own process is to listen, and starts it. */
public class ServerCnxnFactory {
    public static final String ZOOKEEPER_SERVER_CNXN_FACTORY = "zookeeper.serverCnxnFactory";

    private InetSocketAddress address;
    private int connectionsPerAddress;
    private boolean secure;
    private ZooKeeperServer server;

    public static ServerCnxnFactory createFactory() {
        return new ServerCnxnFactory();
    }

    public static ServerCnxnFactory createFactory(int port, int connectionsPerAddress) throws IOException {
        return createFactory(new InetSocketAddress(port), connectionsPerAddress);
    }

    public static ServerCnxnFactory createFactory(InetSocketAddress address, int connectionsPerAddress) throws IOException {
        ServerCnxnFactory factory = createFactory();
        factory.configure(address, connectionsPerAddress);
        return factory;
    }

    public void configure(InetSocketAddress address, int connectionsPerAddress) throws IOException {
        configure(address, connectionsPerAddress, -1, false);
    }

    public void configure(InetSocketAddress address, int connectionsPerAddress, int backlog, boolean secure)
        throws IOException {
        this.address = address;
        this.connectionsPerAddress = Math.max(connectionsPerAddress, 0);
        this.secure = secure;
    }

    public void startup(ZooKeeperServer server) throws IOException, InterruptedException {
        this.server = server;
        server.startAt(address, connectionsPerAddress, secure);
    }

    public void shutdown() {
        if (server != null) {
            server.shutdown();
        }
    }

    public ZooKeeperServer getZooKeeperServer() {
        return server;
    }

    public boolean isSecure() {
        return secure;
    }

    public int getLocalPort() {
        return address.getPort();
    }

    public InetSocketAddress getLocalAddress() {
        return address;
    }

    public int getMaxClientCnxnsPerHost() {
        return connectionsPerAddress;
    }

    public void setMaxClientCnxnsPerHost(int connectionsPerAddress) {
        this.connectionsPerAddress = connectionsPerAddress;
        if (server != null) {
            server.change("maxClientCnxns", connectionsPerAddress);
        }
    }
}
