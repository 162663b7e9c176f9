package suites;

import java.io.File;
import java.io.IOException;
import java.nio.charset.StandardCharsets;
import java.nio.file.Files;
import java.security.GeneralSecurityException;
import java.security.Key;
import java.security.KeyStore;
import java.security.cert.Certificate;
import java.util.Base64;
import java.util.Collections;
import java.util.Map;

/** Java's stores of keys and certificates as PEM, which a server that is not Java's reads. */
final class Pem {
    private Pem() {
    }

    /** Replaces the stores that the keys of a zoo.cfg name by files in `directory`. */
    static void replaceStores(Map<String, String> keys, File directory) throws IOException {
        for (String name : new String[] {"ssl.keyStore", "ssl.trustStore"}) {
            String location = keys.get(name + ".location");
            if (location == null || location.endsWith(".pem")) {
                continue;
            }
            File file = new File(directory, name + ".pem");
            Files.writeString(file.toPath(), convert(new File(location), keys.getOrDefault(name + ".password", "")));
            keys.put(name + ".location", file.getPath());
            keys.remove(name + ".type");
        }
    }

    private static String convert(File store, String password) throws IOException {
        try {
            KeyStore loaded = KeyStore.getInstance(store, password.toCharArray());
            StringBuilder text = new StringBuilder();
            for (String alias : Collections.list(loaded.aliases())) {
                if (loaded.isKeyEntry(alias)) {
                    Key key = loaded.getKey(alias, password.toCharArray());
                    append(text, "PRIVATE KEY", key.getEncoded());
                    for (Certificate certificate : loaded.getCertificateChain(alias)) {
                        append(text, "CERTIFICATE", certificate.getEncoded());
                    }
                } else {
                    append(text, "CERTIFICATE", loaded.getCertificate(alias).getEncoded());
                }
            }
            return text.toString();
        } catch (GeneralSecurityException e) {
            throw new IOException(e);
        }
    }

    private static void append(StringBuilder text, String name, byte[] der) {
        String lines = Base64.getMimeEncoder(64, "\n".getBytes(StandardCharsets.US_ASCII)).encodeToString(der);
        text.append("-----BEGIN ").append(name).append("-----\n").append(lines);
        text.append("\n-----END ").append(name).append("-----\n");
    }
}
