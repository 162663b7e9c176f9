import java.util.concurrent.CountDownLatch;
import java.util.concurrent.TimeUnit;
import org.apache.curator.framework.CuratorFramework;
import org.apache.curator.framework.CuratorFrameworkFactory;
import org.apache.curator.framework.recipes.atomic.DistributedAtomicLong;
import org.apache.curator.framework.recipes.cache.CuratorCache;
import org.apache.curator.framework.recipes.leader.LeaderLatch;
import org.apache.curator.framework.recipes.locks.InterProcessMutex;
import org.apache.curator.retry.ExponentialBackoffRetry;
import org.apache.curator.retry.RetryNTimes;
import org.apache.zookeeper.CreateMode;

/** Curator's recipes against a server: exits with an exception if one of them does not work. */
public class CuratorRecipes {
    static final int PATIENCE_S = 30;

    public static void main(String[] arguments) throws Exception {
        CuratorFramework client =
            CuratorFrameworkFactory.newClient(arguments[0], new ExponentialBackoffRetry(100, 5));
        client.start();
        client.blockUntilConnected();
        InterProcessMutex lock = new InterProcessMutex(client, "/curator/lock");
        expect(lock.acquire(PATIENCE_S, TimeUnit.SECONDS), "a lock");
        lock.release();
        LeaderLatch latch = new LeaderLatch(client, "/curator/latch");
        latch.start();
        expect(latch.await(PATIENCE_S, TimeUnit.SECONDS), "leadership");
        latch.close();
        client.create().creatingParentContainersIfNeeded().forPath("/curator/containers/one");
        client.create().withTtl(60000).withMode(CreateMode.PERSISTENT_WITH_TTL).forPath("/curator/timed");
        CountDownLatch seen = new CountDownLatch(1);
        CuratorCache cache = CuratorCache.build(client, "/curator");
        cache.listenable().addListener((type, before, after) -> {
            if (after != null && after.getPath().equals("/curator/new")) {
                seen.countDown();
            }
        });
        cache.start();
        client.create().forPath("/curator/new");
        expect(seen.await(PATIENCE_S, TimeUnit.SECONDS), "a cache that follows");
        DistributedAtomicLong counter =
            new DistributedAtomicLong(client, "/curator/counter", new RetryNTimes(5, 10));
        for (int i = 0; i < 10; i++) {
            counter.increment();
        }
        expect(counter.get().postValue() == 10, "a counter");
        client.transaction().forOperations(
            client.transactionOp().create().forPath("/curator/t"),
            client.transactionOp().setData().forPath("/curator/t", "x".getBytes()),
            client.transactionOp().check().forPath("/curator/t"),
            client.transactionOp().delete().forPath("/curator/t"));
        cache.close();
        client.delete().deletingChildrenIfNeeded().forPath("/curator");
        client.close();
        System.out.println("all recipes work");
    }

    static void expect(boolean holds, String what) throws Exception {
        if (!holds) {
            throw new Exception("no " + what);
        }
    }
}
