package suites;

import java.io.File;
import java.io.IOException;
import java.nio.file.Files;
import javax.security.auth.login.AppConfigurationEntry;
import javax.security.auth.login.Configuration;

/** The users whom Java's login configuration lets log in to a server, as a file for a server in another process. */
final class Users {
    private static final String SECTION = "zookeeper.sasl.serverconfig";

    private Users() {
    }

    /** Writes the file into `directory`; null if there are no users. */
    static File write(File directory) throws IOException {
        String section = System.getProperty(SECTION, "Server");
        AppConfigurationEntry[] entries;
        try {
            entries = Configuration.getConfiguration().getAppConfigurationEntry(section);
        } catch (SecurityException e) {
            return null;
        }
        StringBuilder text = new StringBuilder("Server {\n  org.apache.zookeeper.server.auth.DigestLoginModule required");
        if (entries == null) {
            if (!Boolean.getBoolean("zookeeper.sessionRequireClientSASLAuth")) {
                return null;
            }
            // A server that requires SASL needs somebody who may log in.
            text.append("\n  user_nobody=\"x\"");
            entries = new AppConfigurationEntry[0];
        }
        for (AppConfigurationEntry entry : entries) {
            entry.getOptions().forEach((name, value) -> text.append("\n  ").append(name).append("=\"").append(value).append('"'));
        }
        File file = new File(directory, "server-users.conf");
        Files.writeString(file.toPath(), text.append(";\n};\n"));
        return file;
    }
}
